"""What trust costs: a step whose workers compare their parameters, a score that is kept as it comes, against none of it.

The other worker of a step is one that holds the same. Its place in the sum is filled in here, since what a sum costs between
two machines depends on the machines: two numbers a worker are added to it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rayd.artifact.load import load
from rayd.config import Run
from rayd.distill.loop import Distillation, OptimiserConfig, Reduce, identity
from rayd.evaluate.row import RowName
from rayd.methods.dm import Distribution
from rayd.run.agreement import Agreement
from rayd.run.distill import distill
from rayd.run.rows import RowTask, Scorer
from rayd.schema import parse
from rayd.seeds import seed_of
from rayd.store import Lease, Store
from rayd.studies.bench import BenchRow, compared, interleaved
from rayd.studies.bench.objectives import Pixels, surroundings

SIZES = {
    "default": {"width": 32, "real": 64, "turns": 20, "steps": 400},
    "full": {"width": 128, "real": 256, "turns": 40, "steps": 2000},
}
BEAT = 5.0
"""Seconds between two heartbeats of a lease, as it ships."""


def steps_of(work: Distillation) -> dict[str, Callable[[], None]]:
    """The next step of the same work; `agreed`: its sum carries step and hash of two workers."""
    steps = work.run()

    def echoed(flat: Tensor) -> Tensor:
        flat[-2:] = flat[-4:-2]
        return flat

    agreement = Agreement(0, 2, echoed, work.inputs.device)
    agreement.work = work

    def step(reduce: Reduce) -> Callable[[], None]:
        def take() -> None:
            work.reduce = reduce
            next(steps)

        return take

    return {"alone": step(identity), "agreed": step(agreement)}


def work_of(width: int, real: int) -> Distillation:
    inputs = surroundings(width, "fp32", real)
    objective = Distribution.Config(batch_real=real).build(inputs)
    rates = OptimiserConfig(name="sgd", lr=0.1)
    return Distillation(Pixels(inputs), objective, [], steps=10**6, optimiser=rates, inputs=inputs)


def run_of(out: str, width: int, steps: int) -> Run:
    """One distribution-matching step on digits: what is scored does not matter."""
    codec, objective = {"name": "pixel"}, {"name": "distribution", "batch_real": 8}
    plain: dict[str, Any] = {
        "data": {"name": "digits"},
        "net": {"name": "convnet", "depth": 2, "width": width},
        "expert": {},
        "recipe": {"name": "bench", "steps": steps, "batch": 64, "lr": 0.01},
        "method": {"codec": codec, "objective": objective, "steps": 1, "compiled": False},
        "out": out,
    }
    return parse(Run, plain)


def answer(scorer: Scorer, kept: bool) -> Callable[[], None]:
    """The next network of a row, and where it is asked, the file that keeps its score."""
    store, numbers = scorer.kept, iter(range(10**6))

    def score() -> None:
        scorer.kept = store if kept else None
        scorer.answer(RowTask(RowName("distilled"), 0, (seed_of("bench", kept, next(numbers)),)))

    return score


def rows(size: str = "default") -> Iterator[BenchRow]:
    s = SIZES[size]
    with tempfile.TemporaryDirectory() as folder, Lease(Store(folder), beat=BEAT):
        by_way = interleaved(steps_of(work_of(s["width"], s["real"])), s["turns"])
        yield compared(
            "trust", f"a step that agrees, width={s['width']} real={s['real']}", by_way["agreed"], by_way["alone"]
        )
        run = run_of(str(Path(folder) / "run"), s["width"], s["steps"])
        list(distill(run))
        at = run.at("artifact")
        scorer = Scorer.of(replace(run, recipe=replace(run.recipe, seeds=1)), at, load(at))
        scores = interleaved({name: answer(scorer, name == "kept") for name in ("lost", "kept")}, s["turns"] // 2)
        case = f"a score that is kept, width={s['width']} steps={s['steps']}"
        yield compared("trust", case, scores["kept"], scores["lost"])
