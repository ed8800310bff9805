"""How many networks and controls the time holds. Each is scored on test once and kept; the table is made of them after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from rayd.config import Run
from rayd.data.images import Spec
from rayd.evaluate.recipe import FEWEST
from rayd.run.compressed import networks
from rayd.run.rows import Outcome, RowTask
from rayd.studies.auto.clock import Clock

Answers = Callable[[Sequence[RowTask]], Iterable[tuple[RowTask, Outcome]]]


def fitting(
    run: Run,
    tasks: Sequence[RowTask],
    clock: Clock,
    end: float,
    answers: Answers,
    slots: int,
    guess: float,
    spec: Spec,
) -> tuple[Run, tuple[str, ...]]:
    """The run with as many networks as fit until `end` of the clock, and the controls that do. Rows come in order, the
    fewest networks of each; then all of them get another while a round fits. The set itself, its view in 8 bits and one
    control have the fewest in any case. `guess`: seconds of a network on real images, before any was trained."""
    firsts = [replace(task, seeds=task.seeds[:FEWEST]) for task in tasks]
    done: list[RowTask] = []
    pace: dict[str, float] = {}
    must = sum(task.row.is_distilled for task in firsts) + 1
    while len(done) < len(firsts):
        some = firsts[len(done) : len(done) + slots]
        choices = networks(spec) if any(task.row.budget == "best" for task in some) else 0.0
        likely = (FEWEST + choices) * max([guess, *pace.values()])
        if len(done) >= must and clock.used + likely > end:
            break
        for task, outcome in answers(some):
            if not isinstance(outcome, str):
                pace[str(task.row)] = fmean(score.seconds for score in outcome)
        done += some
    seeds = FEWEST
    most = max(len(task.seeds) for task in tasks)
    while seeds < most and clock.used + sum(pace.values()) / slots <= end:
        more = [
            replace(task, seeds=task.seeds[seeds : seeds + 1]) for task in tasks[: len(done)] if str(task.row) in pace
        ]
        for _ in range(0, len(more), slots):
            for _ in answers(more[:slots]):
                pass
            more = more[slots:]
        seeds += 1
    recipe = replace(run.recipe, seeds=seeds)
    return replace(run, recipe=recipe), tuple(str(task.row) for task in done if not task.row.is_distilled)
