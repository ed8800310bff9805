"""Scores as Ray tasks: one row, one architecture and one seed each, the same function as in one process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache

import ray

from rayd.config import Run
from rayd.errors import Failed
from rayd.evaluate.row import RowName
from rayd.fleet import cluster
from rayd.machine import use_threads
from rayd.run.rows import Outcome, RowTask, Scorer, attempt
from rayd.schema import parse, to_dict


@cache
def _exam(plain: str, uri: str) -> Scorer:
    """Once per worker process."""
    run = parse(Run, json.loads(plain))
    use_threads(run.scale.threads)
    return Scorer.of(run, uri)


def _answer(plain: str, uri: str, row: str, net: int, seed: int) -> Outcome:
    return attempt(_exam(plain, uri).answer, RowTask(RowName.parse(row), net, (seed,)))


def answers(run: Run, uri: str, asks: Sequence[RowTask]) -> Iterator[tuple[RowTask, Outcome]]:
    """Every ask in its order, as soon as it and those before it are whole. A task lost with its node is tried again."""
    cluster.start(run.scale)
    need = cluster.bundle(run.scale)
    cluster.require(need, 1, "scoring task", run.scale.wait)
    task = ray.remote(_answer).options(max_retries=run.scale.max_failures, **cluster.options(need))
    plain = json.dumps(to_dict(run))
    refs = {(ask, seed): task.remote(plain, uri, str(ask.row), ask.net, seed) for ask in asks for seed in ask.seeds}
    waiting = list(refs.values())
    for ask in asks:
        while any(refs[ask, seed] in waiting for seed in ask.seeds):
            done, waiting = ray.wait(waiting, num_returns=1, timeout=run.scale.timeout)
            if not done:
                for ref in waiting:
                    ray.cancel(ref)
                raise Failed(
                    f"no score within scale.timeout={run.scale.timeout} s, {len(waiting)} tasks open; raise it"
                )
        parts: list[Outcome] = [ray.get(refs[ask, seed]) for seed in ask.seeds]
        reason = next((part for part in parts if isinstance(part, str)), None)
        scores = [score for part in parts if not isinstance(part, str) for score in part]
        yield ask, scores if reason is None else reason
