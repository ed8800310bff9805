"""Independent units of a run as Ray tasks: the same function as in one process, results in the order in which they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from rayd.config import Run
from rayd.errors import Failed, Refused
from rayd.fleet import cluster
from rayd.schema import parse, to_dict

U = TypeVar("U")
R = TypeVar("R")


def _call(work: Callable[..., R], plain: dict[str, Any], arguments: tuple[Any, ...]) -> R:
    return work(parse(Run, plain), *arguments)


def each(run: Run, work: Callable[..., R], units: Sequence[U], *shared: Any) -> Iterator[tuple[U, R]]:
    """work(run, *shared, unit) of every unit. A task lost with its worker or node is tried again; `work` keeps its own
    progress, so that costs what it had not kept."""
    if not units:
        return
    cluster.start(run.scale)
    need = cluster.bundle(run.scale)
    cluster.require(need, 1, "task", run.scale.wait)
    task: Any = ray.remote(_call).options(max_retries=run.scale.max_failures, **cluster.options(need))
    plain = to_dict(run)
    refs = {task.remote(work, plain, (*shared, unit)): unit for unit in units}
    while refs:
        done, _ = ray.wait(list(refs), num_returns=1, timeout=run.scale.timeout)
        if not done:
            for ref in refs:
                ray.cancel(ref)
            raise Failed(
                f"no unit ended within scale.timeout={run.scale.timeout:g} s, {len(refs)} open; what ended is kept: raise "
                "it and run the same command again"
            )
        unit = refs.pop(done[0])
        try:
            yield unit, ray.get(done[0])
        except RayTaskError as error:
            if isinstance(error.cause, Refused | Failed):
                raise type(error.cause)(str(error.cause)) from error
            raise
