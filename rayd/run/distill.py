"""A distillation from its data and experts to its artifact, with resume.

Used as it is by `scale=inline` and by every Ray Train worker; worker 0 writes. All state lies in the run's own folder
(`checkpoints/`, `metrics.jsonl`, `artifact/`), so the same command, again, goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rayd.artifact.load import read_card
from rayd.config import Run, config_identity
from rayd.data.load import load as load_data
from rayd.distill.contract import Objective
from rayd.distill.loop import Reduce, Step
from rayd.distill.loop import identity as unshared
from rayd.distill.unroll import Split
from rayd.errors import Failed, OutOfMemory, Refused
from rayd.machine import arithmetic, device_for, device_kind, out_of_memory, release, use_threads
from rayd.run.agreement import Agreement
from rayd.run.assemble import assemble, own_experts
from rayd.run.checkpoints import Checkpoints
from rayd.run.identity import refuse_differing, surroundings_identity, whole_identity
from rayd.run.recorder import Recorder
from rayd.store import Lease, Store, configure

log = logging.getLogger(__name__)

HALVED = "halved.json"
"""Says that memory ran out and why, so that every worker and every later submission asks for half of it."""


@dataclass(frozen=True)
class Worker:
    """Which worker this is, of how many, how their numbers are summed, and what it computes on."""

    rank: int = 0
    size: int = 1
    reduce: Reduce = unshared
    group: Callable[[Sequence[int]], Reduce] = lambda ranks: unshared
    """How the numbers of some workers are summed; every worker asks for the same ones."""
    device: torch.device | None = None
    """None: as the scale says."""
    notice: Callable[[], bool] = lambda: False
    """Whether a machine of the run is about to be taken away, since it was last asked."""


def finished(run: Run, store: Store) -> bool:
    """Whether the artifact of exactly this run is already there; another run's is refused, never overwritten.

    The experts and the arithmetic of a finished artifact are its own affair: nothing goes on from it.
    """
    if not store.exists("artifact/card.json"):
        return False
    card = read_card(store.sub("artifact"))
    what, do = f"out={run.out}: holds the artifact", "give another out, or remove its artifact folder"
    if card.get("fingerprint") != run.fingerprint():
        config = config_identity(card["config"]) if card.get("config") else {}
        refuse_differing(what, {"config": config}, {"config": run.identity()}, do)
        raise Refused(f"{what} of another run, made by another version of rayd; {do}")
    here = surroundings_identity(run, load_data(run.data), torch.device(device_kind(run.scale.gpus)))
    there = card.get("identity") or {"images": {**here["images"], "train": card["data"].get("content")}}
    kept = [name for name in ("images", "methods", "device") if name in there]
    refuse_differing(what, {name: there[name] for name in kept}, {name: here[name] for name in kept}, do)
    return True


def distill(run: Run, worker: Worker | None = None) -> Iterator[Step]:
    """All of a distillation, from wherever it stands; yields every step and leaves the artifact in `run.out`.

    Where memory runs out, it goes on once from its last checkpoint with half as much for a step.
    """
    worker, store = worker or Worker(), Store(run.out)
    if finished(run, store):
        return
    with contextlib.ExitStack() as stack:
        alone = worker.rank == 0 and run.scale.name == "inline"  # the driver of a fleet holds the lease itself
        lease = stack.enter_context(Lease(store)) if alone else None
        if not finished(run, store):
            yield from _distill(run, store, worker, lease)


def _distill(run: Run, store: Store, worker: Worker, lease: Lease | None) -> Iterator[Step]:
    """The same, once the folder is held."""
    use_threads(run.scale.threads)
    configure(run.store)
    ran_out = str(store.facts(HALVED).get("because", ""))
    while True:
        try:
            yield from _assembled(run, store, worker, lease, ran_out)
            return
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, Failed) or not (shortage := out_of_memory(error)):
                raise
            if ran_out:
                raise OutOfMemory(_knobs(shortage, run, store)) from error
            ran_out = shortage
        log.warning("out of memory (%s): going on from the last checkpoint with half of it for a step", ran_out)
        store.write_json(HALVED, {"because": ran_out})
        release()
        if worker.size > 1:
            raise RuntimeError(f"out of memory ({ran_out}): all workers start again with half of it for a step")


def _assembled(run: Run, store: Store, worker: Worker, lease: Lease | None, ran_out: str) -> Iterator[Step]:
    """The same, with what memory allows. `ran_out`: what was said when there was not enough; empty where there was."""
    device = worker.device or device_for(run.scale.gpus)
    agreement = Agreement(worker.rank, worker.size, worker.reduce, device)
    checkpoints = Checkpoints(store.sub("checkpoints"))
    identity = whole_identity(run, load_data(run.data), device)

    def frozen(experts: list[int]) -> list[int]:
        """The experts that worker 0 finds the run to have begun with."""
        return [
            int(number) for number in agreement.share(checkpoints.claim(identity, experts) if worker.rank == 0 else [])
        ]

    if not run.method.reads_experts:
        frozen([])
    assembled = assemble(run, device, lambda buffer: frozen(own_experts(run, buffer)))
    if ran_out and not assembled.objective.halve():
        raise OutOfMemory(_knobs(ran_out, run, store))
    share_items(assembled.objective, worker)
    recorder = Recorder(assembled, agreement, checkpoints, lease, worker.notice)
    recorder.resume()
    with arithmetic(run.method.precision):
        for step in recorder.work.run():
            recorder.after(step)
            yield step
    recorder.finish({"halved": ran_out} if ran_out else {})
    store.delete(HALVED)


def share_items(objective: Objective, worker: Worker) -> None:
    """More workers than items: those of one item share its images."""
    items = len(objective.plan(0))
    if worker.size <= items:
        return
    groups = [range(item, worker.size, items) for item in range(items)]
    sums = [worker.group(group) for group in groups]
    mine = worker.rank % items
    objective.share(Split(worker.rank // items, len(groups[mine]), sums[mine]))


def _knobs(ran_out: str, run: Run, store: Store) -> str:
    """What to do where memory ran out."""
    objective: Any = run.method.objective
    names = [k for k in ("micro", "batch", "inner_steps", "batch_real", "classes_per_item") if hasattr(objective, k)]
    knobs = ", ".join(f"method.objective.{name}={getattr(objective, name)}" for name in names)
    return (
        f"out of memory: {ran_out}. The last checkpoint is kept in {store.uri}/checkpoints. Knobs: {knobs} (raise micro, "
        "lower the others), then submit again."
    )
