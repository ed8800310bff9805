"""Scores as Ray tasks: one row, one architecture and one seed each, the same function as in one process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import ray

from rayd.config import Run
from rayd.errors import Failed
from rayd.evaluate.score import Score
from rayd.fleet import cluster
from rayd.machine import use_threads
from rayd.run.rows import RowTask, Scorer, attempt
from rayd.schema import parse, to_dict


@cache
def _exam(plain: str, uri: str) -> Scorer:
    """Once per worker process."""
    run = parse(Run, json.loads(plain))
    use_threads(run.scale.threads)
    return Scorer.of(run, uri)


def _answer(plain: str, uri: str, row: str, net: int, seed: int) -> list[tuple[Any, ...]] | str:
    given = attempt(_exam(plain, uri).answer, RowTask(row, net, (seed,)))
    return given if isinstance(given, str) else [(s.accuracy, s.seed, s.net, s.seconds, s.memory) for s in given]


def answers(run: Run, uri: str, asks: Sequence[RowTask]) -> Iterator[tuple[RowTask, list[Score] | str]]:
    """Every ask in its order, as soon as it and those before it are whole. A task lost with its node is tried again."""
    cluster.start(run.scale)
    need = cluster.bundle(run.scale)
    cluster.require(need, 1, "scoring task", run.scale.wait)
    task = ray.remote(_answer).options(max_retries=run.scale.max_failures, **cluster.options(need))
    plain = json.dumps(to_dict(run))
    refs = {(ask, seed): task.remote(plain, uri, ask.row, ask.net, seed) for ask in asks for seed in ask.seeds}
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
        given = [ray.get(refs[ask, seed]) for seed in ask.seeds]
        said = next((one for one in given if isinstance(one, str)), None)
        yield ask, said if said is not None else [Score(*one) for part in given for one in part]
