"""A distillation from its data and experts to its artifact, with resume.

Used as it is by `scale=inline` and by every Ray Train worker; worker 0 writes. All state lies in the run's own folder
(`checkpoints/`, `metrics.jsonl`, `artifact/`), so the same command, again, goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from rayd.config import Run
from rayd.data.load import load as load_data
from rayd.distill.loop import Reduce, Step
from rayd.distill.loop import identity as unshared
from rayd.errors import Failed, Refused
from rayd.machine import use_threads
from rayd.run.agreement import Agreement
from rayd.run.assemble import assemble, device_of, distillation, own_experts
from rayd.run.checkpoints import Checkpoints
from rayd.run.identity import config_identity, refuse_differing, surroundings_identity, whole_identity
from rayd.run.recorder import Recorder
from rayd.store import Lease, Store, configure


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Worker:
    """Which worker this is, of how many, how their numbers are summed, and what it computes on."""

    rank: int = 0
    size: int = 1
    reduce: Reduce = unshared
    device: torch.device = field(default_factory=default_device)
    notice: Callable[[], bool] = lambda: False
    """Whether a machine of the run is about to be taken away, since it was last asked."""


def finished(run: Run, store: Store) -> bool:
    """Whether the artifact of exactly this run is already there; another run's is refused, never overwritten.

    The experts and the arithmetic of a finished artifact are its own affair: nothing goes on from it.
    """
    if not store.exists("artifact/card.json"):
        return False
    card = store.read_json("artifact/card.json")
    what, do = f"out={run.out}: holds the artifact", "give another out, or remove its artifact folder"
    if card.get("fingerprint") != run.fingerprint():
        config = config_identity(card["config"]) if card.get("config") else {}
        refuse_differing(what, {"config": config}, {"config": run.identity()}, do)
        raise Refused(f"{what} of another run, made by another version of rayd; {do}")
    here = surroundings_identity(run, load_data(run.data), device_of(run))
    there = card.get("identity") or {"images": {**here["images"], "train": card["data"].get("content")}}
    kept = [name for name in ("images", "methods", "device") if name in there]
    refuse_differing(what, {name: there[name] for name in kept}, {name: here[name] for name in kept}, do)
    return True


def distill(run: Run, worker: Worker | None = None) -> Iterator[Step]:
    """All of a distillation, from wherever it stands; yields every step and leaves the artifact in `run.out`."""
    worker, store = worker or Worker(), Store(run.out)
    if finished(run, store):
        return
    with contextlib.ExitStack() as held:
        alone = worker.rank == 0 and run.scale.name == "inline"  # the driver of a fleet holds the lease itself
        lease = held.enter_context(Lease(store)) if alone else None
        if not finished(run, store):
            yield from _distill(run, store, worker, lease)


def _distill(run: Run, store: Store, worker: Worker, lease: Lease | None) -> Iterator[Step]:
    """The same, once the folder is held."""
    use_threads(run.scale.threads)
    configure(run.store)
    agreement = Agreement(worker.rank, worker.size, worker.reduce, worker.device)
    checkpoints = Checkpoints(store.sub("checkpoints"))
    identity = whole_identity(run, load_data(run.data), worker.device)

    def frozen(experts: list[int]) -> list[int]:
        """The experts that worker 0 finds the run to have begun with."""
        return [
            int(number) for number in agreement.share(checkpoints.claim(identity, experts) if worker.rank == 0 else [])
        ]

    if not run.method.reads_experts:
        frozen([])
    assembled = assemble(run, worker.device, lambda buffer: frozen(own_experts(run, buffer)))
    items = len(assembled.objective.plan(0))
    if worker.size > items:
        raise Refused(
            f"scale.workers={worker.size}: allowed is at most the {items} items of a step; raise "
            "method.objective.items, or lower method.objective.classes_per_item, whichever this objective has"
        )
    work = agreement.work = distillation(assembled, (worker.rank, worker.size), agreement)
    recorder = Recorder(assembled, work, checkpoints, worker.rank == 0, lease, worker.notice)
    recorder.resume(agreement)
    try:
        for step in work.run():
            recorder.after(step)
            yield step
    except (RuntimeError, MemoryError) as error:
        explained = _out_of_memory(error, run, store)
        if explained is None:
            raise
        raise explained from error
    recorder.finish()


def _out_of_memory(error: BaseException, run: Run, store: Store) -> Failed | None:
    """What to do about it, where memory ran out."""
    text = str(error)
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in text:
        return None
    objective: Any = run.method.objective
    knobs = [
        f"method.objective.{name}={getattr(objective, name)}"
        for name in ("micro", "batch", "inner_steps", "batch_real")
        if hasattr(objective, name)
    ]
    return Failed(
        f"out of memory: {text.splitlines()[0][:200] if text else 'no more memory'}. The last checkpoint is kept in "
        f"{store.uri}/checkpoints. Knobs: {', '.join(knobs)} (raise micro, lower the others), then submit again."
    )
