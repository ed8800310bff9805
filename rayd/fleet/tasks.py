"""Independent units of a run as Ray tasks: the same function as in one process, results in the order in which they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from rayd.config import Run
from rayd.errors import Failed, Refused
from rayd.fleet import cluster
from rayd.fleet.watch import TICK, Pulse, Watch, beating
from rayd.machine import use_threads
from rayd.schema import parse, to_dict
from rayd.store import configure

U = TypeVar("U")
R = TypeVar("R")


def run_tasks(
    run: Run, stage: str, work: Callable[..., R], units: Sequence[U], *shared: Any, fresh: bool = False, place: str = ""
) -> Iterator[tuple[U, R]]:
    """`work(run, *shared, unit)` of every unit. `fresh`: each in a process of its own. `place`: the stage whose nodes they
    take, if another.

    A task whose process or node is lost, or which the watchdog ends, is tried again. `work` keeps its own progress, so
    only what it had not kept is done twice.
    """
    if not units:
        return
    cluster.start(run.scale)
    need = cluster.bundle(run.scale)
    labels = run.scale.selector(place or stage)
    cluster.require(need, 1, f"task of {stage}", run.scale.wait, labels)
    more = {"max_calls": 1} if fresh else {}
    options = cluster.task_options(need, labels, max_retries=run.scale.max_failures, **more)
    task: Any = ray.remote(**options)(_call)
    plain = to_dict(run)
    with Watch(run.scale, run.out, stage) as watch:

        def submit(name: str, unit: U) -> Any:
            away = {"ray.io/node-id": f"!in({','.join(sorted(watch.leaving))})"} if watch.leaving else {}
            placed = task.options(label_selector={**labels, **away}) if away else task
            return placed.remote(watch.pulse, name, work, plain, (*shared, unit))

        named = ((f"{stage} {number}", unit) for number, unit in enumerate(units))
        refs = {submit(name, unit): (name, unit) for name, unit in named}
        while refs:
            done, _ = ray.wait(list(refs), num_returns=1, timeout=TICK)
            if done:
                name, unit = refs.pop(done[0])
                result = _result(done[0], name, watch)
                if isinstance(result, Elsewhere):
                    watch.notices()
                    refs[submit(name, unit)] = (name, unit)
                else:
                    yield unit, result
            elif watch.quiet > run.scale.startup:
                for ref in refs:
                    ray.cancel(ref, force=True)
                raise Failed(
                    f"{stage}: none of {len(refs)} tasks was placed within scale.startup={run.scale.startup:g} s; finished "
                    "tasks are kept: raise it and run the same command again"
                )


class Elsewhere:
    """The answer of a task that Ray sent to a node which was told to stop: its process was still leased."""


def _call(
    pulse: Pulse, name: str, work: Callable[..., R], plain: dict[str, Any], arguments: tuple[Any, ...]
) -> R | Elsewhere:
    if ray.get_runtime_context().get_node_id() in cluster.draining():
        return Elsewhere()
    with beating(pulse, name):
        run = parse(Run, plain)
        use_threads(run.scale.threads)
        configure(run.store)
        return work(run, *arguments)


def _result(ref: ray.ObjectRef[Any], name: str, watch: Watch) -> Any:
    try:
        return ray.get(ref)
    except (WorkerCrashedError, OutOfMemoryError) as error:
        raise Failed(
            f"{name}: its process was lost {watch.scale.max_failures + 1} times (scale.max_failures); the last time: "
            f"{watch.why(name, first_line(error))}. Finished tasks are kept: run the same command again"
        ) from error
    except RayTaskError as error:
        raise raised(error) or error from error


def raised(error: BaseException | None) -> Refused | Failed | None:
    """The Refused or Failed that a worker raised, however often Ray has wrapped it."""
    while error is not None:
        if isinstance(error, Refused | Failed) and not isinstance(error, RayTaskError):  # Ray's is of both classes
            return type(error)(str(error))
        error = getattr(error, "cause", None) or error.__cause__
    return None


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
