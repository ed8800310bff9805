"""The whole way as one job: experts, distillation, evaluation with controls, report. What is done already is skipped.

`stages=[...]` runs some of: prepare experts distill evaluate report. Each stage takes its own resources from scale.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from typing import Literal, get_args

from jobs.compose import Asked, command

KEYS = "jobs.pipeline:Keys"
Stage = Literal["prepare", "experts", "distill", "evaluate", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Keys:
    stages: tuple[Stage, ...] = ("experts", "distill", "evaluate", "report")
    """Always in the order of the list of choices; prepare is for a dataset to be decoded once for a cluster."""
    controls: bool | tuple[str, ...] = True
    """What the evaluation scores beside the set: all, none, or some: [start, random@floats]."""


def act(asked: Asked) -> int:
    from rayd.errors import require
    from rayd.numbers import duration

    if "report" in asked.own.stages:
        require("report", "stages=[..., report]")
    began, parts = time.monotonic(), []
    for name in STAGES:
        if name in asked.own.stages:
            started = time.monotonic()
            worked = run_stage(name, asked)
            asked = on_shards(asked) if name == "prepare" else asked
            spent = f"{name} {duration(time.monotonic() - started)}" if worked else f"{name} already done"
            parts.append(spent)
            print(f"rayd: {spent}", file=sys.stderr, flush=True)
    conclude(asked)
    print(f"rayd: {', '.join(parts)}; {duration(time.monotonic() - began)} in all")
    return 0


def on_shards(asked: Asked) -> Asked:
    """The same run on prepared shards, which the later stages map."""
    data = replace(asked.run.data, name="prepared", path=asked.run.at("data"))
    return replace(asked, run=replace(asked.run, data=data))


def run_stage(name: str, asked: Asked) -> bool:
    """Run a stage; whether there was anything to do."""
    if name == "prepare":
        from jobs.prepare import prepared

        return bool(prepared(asked, asked.run.at("data"), 4096))
    if name == "experts":
        from jobs.experts import built

        return bool(built(asked)) if asked.run.method.reads_experts else False
    if name == "distill":
        from jobs.distill import distilled

        return distilled(asked)
    if name == "evaluate":
        from jobs.evaluate import scored

        return scored(asked, asked.run.at("artifact"), asked.own.controls)
    from jobs.report import reported

    return reported(asked)


def conclude(asked: Asked) -> None:
    """Table, page and the next command."""
    from jobs.evaluate import table

    run = asked.run
    if "evaluate" in asked.own.stages:
        print(table(run.at("artifact")))
    if "report" in asked.own.stages:
        print(f"page: {run.at('report/index.html')}")
    print(peak_line(asked))
    print(f"next: {asked.line('export')}")


def peak_line(asked: Asked) -> str:
    """Peak memory of one process of each stage."""
    from rayd.machine import peak_memory
    from rayd.numbers import size_text
    from rayd.store import Store

    timing = Store(asked.run.out).facts("timing.json") | Store(asked.run.at("artifact")).facts("timing.json")
    peaks = [(stage, timing[f"{stage}_peak"]) for stage in STAGES if timing.get(f"{stage}_peak")]
    words = [f"{stage} {size_text(peak)}" for stage, peak in [*peaks, ("this one", peak_memory("cpu"))]]
    return f"peak memory of one process: {', '.join(words)}"


if __name__ == "__main__":
    sys.exit(command("pipeline", __doc__, act, KEYS))
