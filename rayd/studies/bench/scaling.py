"""Throughput of each expert actor and each Train worker, against one; Ray Train, against inline.

The jobs themselves are run on one Ray with one thread a worker, on images made from a seed. Their times are read from
what they leave: commit times of shards, and the seconds of every step in metrics.jsonl. Jobs follow one another, so a
ratio is of medians; it is marked noisy where the times of either job scatter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from rayd.errors import Failed
from rayd.studies.bench import BenchRow, pairs

ROOT = Path(__file__).resolve().parents[3]
SIZES = {
    "default": {"count": 1024, "units": 12, "epochs": 6, "width": 16, "steps": 16, "inner_steps": 10, "batch": 64},
    "full": {"count": 8192, "units": 12, "epochs": 6, "width": 64, "steps": 40, "inner_steps": 20, "batch": 100},
}
ONE_AFTER_ANOTHER = """
import json, runpy, sys
for job, *words in json.loads(sys.argv[1]):
    sys.argv = [job, *words]
    try:
        runpy.run_module(job, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
"""
"""Jobs as they are typed, in one process, so that Ray is started once for all of them."""


def rows(size: str = "default") -> Iterator[BenchRow]:
    s = SIZES[size]
    with tempfile.TemporaryDirectory(prefix="rayd-scaling-") as name:
        folder = Path(name)
        common = [f"data.count={s['count']}", f"net.width={s['width']}"]
        units = [
            f"expert.experts={s['units']}", "expert.per_shard=1", f"expert.epochs={s['epochs']}",
            "method.objective.expert_epochs=1", f"method.objective.last={s['epochs']}",
        ]  # fmt: skip
        distill = [
            *common, *units, f"buffer={folder / 'one' / 'experts'}", f"method.steps={s['steps']}", "budget.ipc=10",
            f"method.objective.inner_steps={s['inner_steps']}", f"method.objective.batch={s['batch']}",
        ]  # fmt: skip
        two, one = ([*distill, f"method.objective.items={items}"] for items in (2, 1))
        whole = jobs([
            ("experts", folder / "one", ["scale=laptop", "scale.actors=1", *common, *units]),
            ("experts", folder / "two", ["scale=laptop", "scale.actors=2", *common, *units]),
            ("distill", folder / "inline", ["scale=inline", *two]),
            ("distill", folder / "train1", ["scale=laptop", "scale.workers=1", *two]),
            ("distill", folder / "train2", ["scale=laptop", "scale.workers=2", *two]),
            ("distill", folder / "alone", ["scale=laptop", "scale.workers=1", *one]),
            ("distill", folder / "shared", ["scale=laptop", "scale.workers=2", *one]),
        ])  # fmt: skip
        single, double = (shard_seconds(folder / out, actors, s["units"]) for out, actors in (("one", 1), ("two", 2)))
        inline, train1, train2, alone, shared = (
            step_seconds(folder / out) for out in ("inline", "train1", "train2", "alone", "shared")
        )
        experts, segments = (
            f"width={s['width']} images={s['count']}",
            f"N={s['inner_steps']} batch={s['batch']} 2 segments",
        )
        yield rate(f"{experts} 1 expert actor", single, single, 1)
        yield rate(f"{experts} 2 expert actors", double, single, 2)
        yield rate(f"{segments}, inline", inline, inline, 1, "s/step")
        yield rate(f"{segments}, Ray Train, 1 worker", train1, inline, 1, "s/step")
        yield rate(f"{segments}, Ray Train, 2 workers", train2, train1, 2, "s/step")
        segment = f"N={s['inner_steps']} batch={s['batch']} 1 segment"
        yield rate(f"{segment}, Ray Train, 1 worker", alone, alone, 1, "s/step")
        yield rate(f"{segment}, Ray Train, 2 workers share its images", shared, alone, 2, "s/step")
        steps = sum(map(sum, (inline, train1, train2, alone, shared)))
        working = sum((s["units"] * median(times) for times in (single, double)), steps)
        yield BenchRow(
            bench="scaling", case="starting Ray, actors, Train; compilation", value=whole - working, unit="s"
        )


def rate(case: str, seconds: list[float], alone: list[float], workers: int, unit: str = "experts/h each") -> BenchRow:
    """The ratio is that of what one worker does to what it does alone: 1 where nothing is lost."""
    typical = median(seconds)
    value = typical if unit == "s/step" else 3600 / typical / workers
    noisy = any(pairs([1.0] * len(times), times)[1] for times in (seconds, alone))
    ratio = median(alone) / typical / workers
    return BenchRow(bench="scaling", case=case, value=value, unit=unit, ratio=ratio, noisy=noisy)


def shard_seconds(out: Path, actors: int, units: int) -> list[float]:
    """Between the commits of shards, all actors together, once all are at work: after the first commit of each."""
    times = sorted(path.stat().st_mtime_ns / 1e9 for path in (out / "experts").glob("experts-*.json"))
    if len(times) != units:
        raise Failed(f"scaling: {len(times)} of {units} shards in {out}")
    rounds = times[actors - 1 :: actors]
    return [(later - earlier) / actors for earlier, later in pairwise(rounds)]


def step_seconds(out: Path) -> list[float]:
    """Of the steps after the first two, which compile."""
    return [json.loads(line)["seconds"] for line in (out / "metrics.jsonl").read_text().splitlines()[2:]]


def jobs(wanted: Sequence[tuple[str, Path, list[str]]]) -> float:
    """All of them, as a user would submit them, with one thread a worker; seconds."""
    plain = [[f"jobs.{verb}", "data=generated", f"out={out}", *words] for verb, out, words in wanted]
    command = [sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(plain)]
    environment, began = {**os.environ, "OMP_NUM_THREADS": "1"}, time.monotonic()
    child = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    if child.returncode != 0:
        raise Failed(f"scaling: a job ended with {child.returncode}:\n{child.stderr[-2000:]}")
    return time.monotonic() - began
