"""Scores as Ray tasks: one row, one architecture and one seed each, the same function as in one process."""

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


def _score(run: Run, uri: str, unit: tuple[RowTask, int]) -> Outcome:
    row, seed = unit
    return attempt(_scorer(json.dumps(to_dict(run)), uri).answer, RowTask(row.row, row.net, (seed,)))


def answers(run: Run, uri: str, asks: Sequence[RowTask]) -> Iterator[tuple[RowTask, Outcome]]:
    """The scores of every row, in the order asked, each as soon as it and those before it are whole."""
    units = [(row, seed) for row in asks for seed in row.seeds]
    results: dict[tuple[RowTask, int], Outcome] = {}
    waiting = deque(asks)
    for unit, result in run_tasks(run, "evaluate", _score, units, uri):
        results[unit] = result
        while waiting and all((waiting[0], seed) in results for seed in waiting[0].seeds):
            row = waiting.popleft()
            parts = [results[row, seed] for seed in row.seeds]
            reason = next((part for part in parts if isinstance(part, str)), None)
            scores = [score for part in parts if not isinstance(part, str) for score in part]
            yield row, scores if reason is None else reason
