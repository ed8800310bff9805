"""Scores as Ray tasks: one row and architecture each, and on a CPU one seed, the same function as in one process."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache

from rayd.config import Run
from rayd.fleet.tasks import run_tasks
from rayd.run.rows import Outcome, RowTask, Scorer, attempt
from rayd.schema import parse, to_dict


@cache
def _scorer(plain: str, uri: str) -> Scorer:
    """Built once in a worker process."""
    return Scorer.of(parse(Run, json.loads(plain)), uri)


Group = tuple[RowTask, tuple[int, ...]]


def _score(run: Run, uri: str, unit: Group) -> Outcome:
    row, seeds = unit
    return attempt(_scorer(json.dumps(to_dict(run)), uri).answer, RowTask(row.row, row.net, seeds))


def groups(row: RowTask, gpus: float) -> list[Group]:
    """A row's tasks: on a GPU one for all seeds, whose networks train side by side; else one a seed."""
    return [(row, row.seeds)] if gpus > 0 else [(row, (seed,)) for seed in row.seeds]


def answers(run: Run, uri: str, asks: Sequence[RowTask]) -> Iterator[tuple[RowTask, Outcome]]:
    """The scores of every row, in the order asked, each as soon as it and those before it are whole."""
    parts_of = {row: groups(row, run.scale.gpus) for row in asks}
    results: dict[Group, Outcome] = {}
    waiting = deque(asks)
    for unit, result in run_tasks(run, "evaluate", _score, [unit for row in asks for unit in parts_of[row]], uri):
        results[unit] = result
        while waiting and all(unit in results for unit in parts_of[waiting[0]]):
            row = waiting.popleft()
            parts = [results[unit] for unit in parts_of[row]]
            reason = next((part for part in parts if isinstance(part, str)), None)
            scores = [score for part in parts if not isinstance(part, str) for score in part]
            yield row, scores if reason is None else reason
