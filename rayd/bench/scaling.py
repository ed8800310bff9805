"""More hands, and what they lose: throughput of each expert actor and each Train worker, and Ray Train against inline.

The jobs themselves are run, each in processes of its own with one thread a worker, on images out of a seed; what they
took is read from what they leave: commit times of shards, and the seconds of every step in metrics.jsonl.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from rayd.bench import Row
from rayd.errors import Failed

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "default": {"count": 2048, "units": 6, "width": 16, "steps": 24, "inner_steps": 10, "batch": 64},
    "full": {"count": 8192, "units": 12, "width": 64, "steps": 40, "inner_steps": 20, "batch": 100},
}


def rows(size: str = "default") -> Iterator[Row]:
    s = SIZES[size]
    with tempfile.TemporaryDirectory(prefix="rayd-scaling-") as name:
        folder = Path(name)
        common = [f"data.count={s['count']}", f"net.width={s['width']}"]
        alone = per_actor(folder / "one", 1, common, s["units"])
        together = per_actor(folder / "two", 2, common, s["units"])
        where = f"width={s['width']} images={s['count']}"
        yield Row("scaling", f"{where} 1 expert actor", alone, "experts/h each", 1.0)
        yield Row("scaling", f"{where} 2 expert actors", together, "experts/h each", together / alone)
        distill = [
            *common, f"buffer={folder / 'one' / 'experts'}", f"method.steps={s['steps']}", "method.objective.items=2",
            f"method.objective.inner_steps={s['inner_steps']}", f"method.objective.batch={s['batch']}", "budget.ipc=10",
        ]  # fmt: skip
        where = f"N={s['inner_steps']} batch={s['batch']}"
        inline = step_seconds(folder / "inline", distill, "inline", 1)
        yield Row("scaling", f"{where} 2 segments, inline", inline, "s/step", 1.0)
        one = step_seconds(folder / "train1", distill, "laptop", 1)
        yield Row("scaling", f"{where} 2 segments, Ray Train, 1 worker", one, "s/step", inline / one)
        two = step_seconds(folder / "train2", distill, "laptop", 2)
        yield Row("scaling", f"{where} 2 segments, Ray Train, 2 workers", two, "s/step", one / two / 2)


def per_actor(out: Path, actors: int, words: list[str], units: int) -> float:
    """Experts an hour that one actor makes once all are at work: the first commit of each is the start of the clock."""
    more = [f"scale.actors={actors}", f"expert.experts={units}", "expert.per_shard=1", "expert.epochs=6"]
    job("experts", out, [*words, *more], "laptop")
    times = sorted(path.stat().st_mtime_ns for path in (out / "experts").glob("experts-*.json"))
    if len(times) != units:
        raise Failed(f"scaling: {len(times)} of {units} shards in {out}")
    return (units - actors) / ((times[-1] - times[actors - 1]) / 1e9) * 3600 / actors


def step_seconds(out: Path, words: list[str], scale: str, workers: int) -> float:
    """The median step, the first few left to compilation."""
    job("distill", out, [*words, f"scale.workers={workers}"], scale)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return float(median(line["seconds"] for line in lines[2:]))


def job(verb: str, out: Path, words: list[str], scale: str) -> None:
    command = [sys.executable, "-m", f"jobs.{verb}", "data=generated", f"scale={scale}", f"out={out}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )  # fmt: skip
    if done.returncode != 0:
        raise Failed(f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stderr[-2000:]}")
