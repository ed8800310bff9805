"""The experts of a run: the plan of its units, the work of one unit, and all units in this process.

A unit is the experts of one shard. `build_unit` trains them and commits the shard. It is the same function under
`scale=inline` and in every actor of the fleet, so both leave the same bytes. Committed units are skipped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from rayd.config import Run
from rayd.data.images import Splits
from rayd.data.load import load as load_data
from rayd.data.transform import Transform
from rayd.errors import Failed, OutOfMemory
from rayd.experts.buffer import BufferWriter
from rayd.experts.config import ExpertUnit, plan_units
from rayd.experts.memory import SPARE, micro_batch
from rayd.experts.shards import HEAD, Commit, read_head
from rayd.experts.train import Diverged, chunk_of, train
from rayd.experts.trajectory import Snapshot, Trajectory
from rayd.machine import (
    arithmetic,
    device_for,
    device_kind,
    free_memory,
    out_of_memory,
    peak_memory,
    release,
    use_threads,
    versions,
)
from rayd.nets.convnet import Net
from rayd.numbers import size_text
from rayd.run.assemble import buffer_identity, last_matched
from rayd.run.cost import account
from rayd.run.progress import Built, Progress
from rayd.store import Store, configure

log = logging.getLogger(__name__)


def units_of(run: Run, last_epoch: int | None = None) -> list[ExpertUnit]:
    """All units of a run. `last_epoch`: the last epoch to match, where the run's method does not say."""
    last = last_matched(run) if last_epoch is None else last_epoch
    return plan_units(run.expert, run.seed, last, run.method.needs_teacher)


@dataclass(frozen=True)
class ExpertPlan:
    """What every unit of a run needs: images, transform, network, and the buffer to write."""

    run: Run
    units: list[ExpertUnit]
    splits: Splits
    transform: Transform
    net: Net
    device_type: str
    writer: BufferWriter
    last_epoch: int | None

    @classmethod
    def open(cls, run: Run, last_epoch: int | None = None, free: Callable[[str], int] = free_memory) -> ExpertPlan:
        """Read the data and name the units. `last_epoch`: the last epoch to match, where the run's method does not say;
        `free`: asks for the bytes free where the experts are trained, 0 where that is not known."""
        units = units_of(run, last_epoch)
        splits = load_data(run.data)
        transform = Transform.fit(splits.train, run.transform)
        net = run.net.build(splits.train.spec)
        device_type, store = device_kind(run.scale.gpus), Store(run.experts_at)
        chunk = recorded_chunk(store) if not run.expert.micro else 0
        chunk = chunk or planned_chunk(run, net, device_type, len(splits.train) * net.spec.floats, free)
        run = replace(run, expert=replace(run.expert, micro=chunk))
        fingerprint = buffer_identity(run, splits, transform, net) | {
            "plan": {
                "seed": run.seed,
                "per_shard": run.expert.per_shard,
                "threads": run.scale.threads,
                "engine": run.expert.path(device_type),
                "chunk": chunk,
            }
        }
        layout = {
            "size": net.size,
            "trainable": net.trainable,
            "names": list(net.flat.names),
            "shapes": [list(shape) for shape in net.flat.shapes],
        }
        writer = BufferWriter(store, fingerprint, layout)
        return cls(run, units, splits, transform, net, device_type, writer, last_epoch)

    def smaller(self) -> ExpertPlan | None:
        """The same with half the micro-batch; None where rows made with this one are committed, or it cannot be halved."""
        micro = self.run.expert.micro // 2
        if (
            not micro
            or self.net.norm == "batch"
            or any(name.endswith(".tar") for name in self.writer.store.sizes("experts-"))
        ):
            return None
        self.writer.store.delete(HEAD)
        return ExpertPlan.open(replace(self.run, expert=replace(self.run.expert, micro=micro)), self.last_epoch)

    def images_of(self, unit: ExpertUnit) -> int:
        """Training images that a unit is trained on, every pass counted."""
        return len(unit.experts) * unit.epochs[-1] * len(self.splits.train)

    def bytes_of(self, unit: ExpertUnit) -> int:
        width = 2 if self.run.expert.storage == "fp16" else 4
        return len(unit.experts) * len(unit.epochs) * self.net.size * width

    def saving(self) -> str:
        """The snapshots that are kept of each expert, and the bytes that this saves."""
        config, unit = self.run.expert, self.units[0]
        kept, snapshots = len(unit.epochs), config.epochs + 1
        total = sum(map(self.bytes_of, self.units))
        text = f"{config.experts} experts in {len(self.units)} shards, {kept} of {snapshots} snapshots kept"
        if unit.epochs[-1] < config.epochs:
            text += f", {unit.epochs[-1]} of {config.epochs} epochs trained"
        text += f", {self.images_of(unit):,} images a shard"
        whole = total * snapshots // kept
        return f"{text}: {size_text(total)}" + (f" instead of {size_text(whole)}" if whole > total else "")

    def pending(self) -> tuple[list[ExpertUnit], list[Commit], list[str]]:
        """Units still to do, shards that are done, and the names of units known to diverge."""
        self.writer.claim()
        sizes = self.writer.store.sizes("experts-")
        todo: list[ExpertUnit] = []
        done: list[Commit] = []
        failed: list[str] = []
        for unit in self.units:
            commit = self.writer.committed(unit.name, sizes)
            if commit is not None and commit.holds(unit.experts, unit.epochs):
                done.append(commit)
            elif commit is None and f"{unit.name}.failed.json" in sizes and self._same_failure(unit):
                failed.append(unit.name)
            else:
                if commit is not None:
                    epochs = commit.marker["experts"][0]["epochs"]
                    log.warning(
                        "%s holds %d experts to epoch %d, this run asks %d to epoch %d: trained again and replaced",
                        commit.tar,
                        len(commit.marker["experts"]),
                        epochs[-1],
                        len(unit.experts),
                        unit.epochs[-1],
                    )
                todo.append(unit)
        return todo, done, failed

    def _same_failure(self, unit: ExpertUnit) -> bool:
        """Whether the recorded failure is one that this unit would meet: same fingerprint, no later epoch."""
        failure = self.writer.failed(unit.name) or {}
        return failure.get("fingerprint") == self.writer.fingerprint and failure.get("epoch", 0) <= unit.epochs[-1]


def recorded_chunk(store: Store) -> int:
    """The micro-batch of a buffer that was begun: what is free now does not change it. 0 where there is none."""
    plan = read_head(store)["fingerprint"].get("plan", {}) if store.exists(HEAD) else {}
    return int(plan.get("chunk", 0))


def planned_chunk(run: Run, net: Net, device_type: str, resident: int, free: Callable[[str], int]) -> int:
    """Images of each expert in one pass; 0 where it depends on memory that cannot be seen from here."""
    config, gpus = run.expert, run.scale.gpus
    if config.micro or net.norm == "batch" or not config.stacks(device_type):
        return chunk_of(config, net, device_type)
    room = config.memory * 2**30
    if not room and device_type == "cuda":
        room = SPARE * min(1.0, gpus) * free(device_type)
        if not room:
            return 0
    chunk = micro_batch(config, net, resident, room) if room else config.batch
    log.info("experts: %d of %d images of each expert at a time", chunk, config.batch)
    return chunk


def build_unit(plan: ExpertPlan, unit: ExpertUnit) -> Built:
    """Train the experts of one unit and commit their shard; a divergence is recorded, not retried."""
    try:
        with arithmetic(plan.run.expert.precision):
            return _build_unit(plan, unit)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, Failed) or not (ran_out := out_of_memory(error)):
            raise
        config = plan.run.expert
        knobs = f"expert.micro={config.micro}, expert.per_shard={config.per_shard}, expert.batch={config.batch}"
        raise OutOfMemory(f"{unit.name}: out of memory: {ran_out}. Knobs: {knobs} (lower)") from error


def with_less(build: Callable[[ExpertPlan], Iterator[Progress]], plan: ExpertPlan) -> Iterator[Progress]:
    """All units; where memory runs out before any shard is there, once more with half the micro-batch."""
    try:
        yield from build(plan)
        return
    except OutOfMemory as error:
        less = plan.smaller()
        if less is None:
            raise
        log.warning("%s; trying again with expert.micro=%d", error, less.run.expert.micro)
    release()
    yield from build(less)


def _build_unit(plan: ExpertPlan, unit: ExpertUnit) -> Built:
    run, began = plan.run, time.monotonic()
    there = plan.writer.committed(unit.name)
    if there is not None and there.holds(unit.experts, unit.epochs):  # by another run of this plan, in the meantime
        return Built(unit.name, there.bytes, 0, time.monotonic() - began)
    unfinished = plan.writer.unfinished(unit.name, unit.experts)
    snapshots = train(
        run.expert,
        plan.net,
        plan.transform,
        plan.splits.train,
        unit.seeds,
        epochs=unit.epochs[-1],
        experts=unit.experts,
        val=plan.splits.val,
        device=plan.device_type,
        unfinished=unfinished,
        residence=run.scale.images,
    )
    kept: dict[int, list[Snapshot]] = {expert: [] for expert in unit.experts}
    accuracies: list[float] = []
    seeds = dict(zip(unit.experts, unit.seeds, strict=True))
    try:
        with plan.writer.shard(unit.name, run.expert.storage) as shard:
            for snapshot in snapshots:
                if snapshot.epoch in unit.epochs:
                    kept[snapshot.expert].append(snapshot)
                if snapshot.epoch == unit.epochs[-1]:
                    accuracies.append(snapshot.metrics.get("val_accuracy", float("nan")))
                    shard.add(Trajectory.of(kept.pop(snapshot.expert)), seed=seeds[snapshot.expert])
            commit = shard.publish(versions(plan.device_type))
        unfinished.clear()
    except Diverged as error:
        log.warning("%s: %s", unit.name, error)
        numbers = {**error.numbers, "unit": unit.name, "reason": str(error), "fingerprint": plan.writer.fingerprint}
        plan.writer.fail(unit.name, numbers)
        unfinished.clear()
        return Built(unit.name, 0, 0, time.monotonic() - began, failure=error.numbers)
    seconds, memory = time.monotonic() - began, peak_memory(plan.device_type)
    mean = sum(accuracies) / len(accuracies)
    return Built(unit.name, commit.bytes, plan.images_of(unit), seconds, accuracy=mean, memory=memory)


def start(plan: ExpertPlan) -> tuple[list[ExpertUnit], Progress]:
    """The units that are left, and a Progress that counts the committed ones."""
    todo, done, failed = plan.pending()
    log.info("%s", plan.saving())
    progress = Progress(
        len(plan.units),
        len(done),
        planned=sum(len(unit.experts) for unit in todo),
        failed=len(failed),
        bytes=sum(commit.bytes for commit in done),
    )
    return todo, progress


def build(plan: ExpertPlan) -> Iterator[Progress]:
    """Build every unit that is not committed yet, one after another, in this process."""
    device_for(plan.run.scale.gpus)
    yield from with_less(_in_turn, plan)


def _in_turn(plan: ExpertPlan) -> Iterator[Progress]:
    todo, progress = start(plan)
    yield progress
    use_threads(plan.run.scale.threads)
    configure(plan.run.store)
    for unit in todo:
        yield progress.add(build_unit(plan, unit), len(unit.experts))
    finish(plan, progress)


def finish(plan: ExpertPlan, progress: Progress) -> None:
    """Write the manifest and the cost; too many diverged units end the run as failed."""
    progress.bytes = plan.writer.finish()
    if progress.done:
        account(Store(plan.run.out), progress)
    limit = plan.run.expert.max_failed
    if progress.failed / len(plan.units) > limit:
        raise Failed(
            f"{progress.failed} of {len(plan.units)} units diverged, more than expert.max_failed={limit}; their "
            f"numbers are in {plan.writer.store.where('experts-*.failed.json')}. Committed shards stay; "
            "lower expert.lr"
        )
