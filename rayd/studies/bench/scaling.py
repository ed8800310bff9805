"""More hands, and what they lose: throughput of each expert actor and each Train worker, and Ray Train against inline.

The jobs themselves are run, on one Ray and with one thread a worker, on images out of a seed; what they
took is read from what they leave: commit times of shards, and the seconds of every step in metrics.jsonl.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from rayd.errors import Failed
from rayd.studies.bench import Row

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "default": {"count": 2048, "units": 6, "epochs": 6, "width": 16, "steps": 16, "inner_steps": 10, "batch": 64},
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


def rows(size: str = "default") -> Iterator[Row]:
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
            "method.objective.items=2", f"method.objective.inner_steps={s['inner_steps']}",
            f"method.objective.batch={s['batch']}",
        ]  # fmt: skip
        whole = jobs([
            ("experts", folder / "one", ["scale=laptop", "scale.actors=1", *common, *units]),
            ("experts", folder / "two", ["scale=laptop", "scale.actors=2", *common, *units]),
            ("distill", folder / "inline", ["scale=inline", *distill]),
            ("distill", folder / "train1", ["scale=laptop", "scale.workers=1", *distill]),
            ("distill", folder / "train2", ["scale=laptop", "scale.workers=2", *distill]),
        ])  # fmt: skip
        where = f"width={s['width']} images={s['count']}"
        alone, together = per_actor(folder / "one", 1, s["units"]), per_actor(folder / "two", 2, s["units"])
        making = s["units"] / alone * 3600 + s["units"] / together / 2 * 3600
        yield Row("scaling", f"{where} 1 expert actor", alone, "experts/h each", 1.0)
        yield Row("scaling", f"{where} 2 expert actors", together, "experts/h each", together / alone)
        where = f"N={s['inner_steps']} batch={s['batch']}"
        inline, one, two = (step_seconds(folder / name) for name in ("inline", "train1", "train2"))
        yield Row("scaling", f"{where} 2 segments, inline", inline, "s/step", 1.0)
        yield Row("scaling", f"{where} 2 segments, Ray Train, 1 worker", one, "s/step", inline / one)
        yield Row("scaling", f"{where} 2 segments, Ray Train, 2 workers", two, "s/step", one / two / 2)
        starting = whole - making - s["steps"] * (inline + one + two)
        yield Row("scaling", "starting Ray, actors, Train; compilation", starting, "s")


def per_actor(out: Path, actors: int, units: int) -> float:
    """Experts an hour that one actor makes once all are at work: the first commit of each is the start of the clock."""
    times = sorted(path.stat().st_mtime_ns for path in (out / "experts").glob("experts-*.json"))
    if len(times) != units:
        raise Failed(f"scaling: {len(times)} of {units} shards in {out}")
    return (units - actors) / ((times[-1] - times[actors - 1]) / 1e9) * 3600 / actors


def step_seconds(out: Path) -> float:
    """The median step, the first few left to compilation."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return float(median(line["seconds"] for line in lines[2:]))


def jobs(wanted: Sequence[tuple[str, Path, list[str]]]) -> float:
    """All of them, as a user would submit them, with one thread a worker; seconds."""
    plain = [[f"jobs.{verb}", "data=generated", f"out={out}", *words] for verb, out, words in wanted]
    command = [sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(plain)]
    environment, began = {**os.environ, "OMP_NUM_THREADS": "1"}, time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )  # fmt: skip
    if done.returncode != 0:
        raise Failed(f"scaling: a job ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.monotonic() - began
