"""The stages of a run on a large generated dataset, each a program of its own whose memory is watched.

`python large.py STAGE FOLDER CLASSES COUNT` does one stage and prints how long it took to get ready.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OBJECTIVES: dict[str, dict[str, Any]] = {
    "dm": {"name": "distribution", "batch_real": 32},
    "ncfm": {"name": "ncfm", "batch_real": 32, "pool": 1, "frequencies": 16},
    "mtt": {"name": "mtt", "expert_epochs": 1, "last": 1, "inner_steps": 2, "batch": 20},
}
STAGES = ("prepare", "experts", *OBJECTIVES, "evaluate")
LIMIT = 2 * 2**30
"""Bytes of anonymous memory that a process may have; pages of mapped files are apart."""


@dataclass(frozen=True)
class Cost:
    """Of one stage."""

    ready: float
    """Seconds from the imports to the first piece of work."""
    peak: int
    """Bytes of anonymous memory."""


def stage_of(folder: Path, stage: str, classes: int, count: int) -> Cost:
    """A stage in a child process, which is ended as soon as it has more than LIMIT."""
    words = [sys.executable, "-m", "tests.support.large", stage, str(folder), str(classes), str(count)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, status = 0, Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        peak = max(peak, int(lines.get("RssAnon", "0 kB").split()[0]) * 1024)
        if peak > LIMIT:
            child.kill()
        time.sleep(0.02)
    out, errors = child.communicate()
    assert peak <= LIMIT, f"{stage}: {peak:,} bytes of anonymous memory"
    assert child.returncode == 0, f"{stage}: {errors[-2000:]}"
    return Cost(json.loads(out.strip().splitlines()[-1])["ready"], peak)


def main(stage: str, folder: str, classes: str, count: str) -> None:
    from rayd.config import Run
    from rayd.machine import use_threads
    from rayd.schema import parse

    use_threads(1)
    began = time.perf_counter()
    at = Path(folder)
    generated = {"name": "generated", "size": 64, "classes": int(classes), "count": int(count)}
    run = parse(Run, {
        "data": generated if stage == "prepare" else {"name": "prepared", "path": str(at / "data"), "val": 200},
        "net": {"width": 8},
        "expert": {"experts": 1, "per_shard": 1, "epochs": 1, "batch": 128, "compiled": False, "keep": "all"},
        "recipe": {"steps": 4, "seeds": 1, "batch": 64},
        "method": {
            "codec": {"name": "pixel"}, "objective": OBJECTIVES.get(stage, OBJECTIVES["mtt"]), "steps": 2,
            "compiled": False,
        },
        "budget": {"ipc": 1},
        "buffer": str(at / "experts"),
        "out": str(at / ("mtt" if stage == "evaluate" else stage)),
    })  # fmt: skip
    work = started(stage, run, at)
    next(work)
    ready = time.perf_counter() - began
    for _ in work:
        pass
    print(json.dumps({"ready": ready}))


def started(stage: str, run: Any, at: Path) -> Iterator[Any]:
    """The stage: first a yield once it is ready to work, then its work."""
    if stage == "prepare":
        from rayd.data.prepare import Preparation

        work = Preparation(run.data, str(at / "data"), 4096)
        work.agree()
        yield
        for unit in work.pending():
            yield work.write(unit)
        work.finish()
    elif stage == "experts":
        from rayd.run.experts import ExpertPlan, build

        plan = ExpertPlan.open(run)
        yield
        yield from build(plan)
    elif stage == "evaluate":
        from rayd.artifact.load import load
        from rayd.run.evaluate import score
        from rayd.run.rows import Scorer

        uri = run.at("artifact")
        Scorer.of(run, uri, load(uri))
        yield
        yield score(run, uri, ("random@floats", "herding@floats", "full"))
    else:
        import torch

        from rayd.run.assemble import assemble
        from rayd.run.distill import distill

        assemble(run, torch.device("cpu"))
        yield
        yield from distill(run)


if __name__ == "__main__":
    main(*sys.argv[1:])
