"""The experts of a run: the plan of its units, the work of one unit, and all units in this process.

A unit is the experts of one shard. `build_unit` trains them and commits the shard. It is the same function under
`scale=inline` and in every actor of the fleet, so both leave the same bytes. Committed units are skipped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rayd.config import Run
from rayd.data.images import Splits
from rayd.data.load import load as load_data
from rayd.data.transform import Transform
from rayd.errors import Failed
from rayd.experts.buffer import BufferWriter
from rayd.experts.config import ExpertUnit, plan_units
from rayd.experts.shards import Commit
from rayd.experts.train import Diverged, chunk_of, train
from rayd.experts.trajectory import Snapshot, Trajectory
from rayd.machine import peak_memory, use_threads
from rayd.nets.convnet import Net
from rayd.readable import size_text
from rayd.run.assemble import buffer_identity, device_of, last_matched
from rayd.run.cost import account
from rayd.run.progress import Built, Progress
from rayd.store import Store, configure
from rayd.version import VERSION

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

    @classmethod
    def open(cls, run: Run, last_epoch: int | None = None) -> ExpertPlan:
        """Read the data and name the units. `last_epoch`: the last epoch to match, where the run's method does not say."""
        units = units_of(run, last_epoch)
        splits = load_data(run.data)
        transform = Transform.fit(splits.train, run.transform)
        net = run.net.build(splits.train.spec)
        device_type = device_of(run).type
        fingerprint = buffer_identity(run, splits, transform, net) | {
            "plan": {
                "seed": run.seed,
                "per_shard": run.expert.per_shard,
                "threads": run.scale.threads,
                "engine": run.expert.path(device_type),
                "chunk": chunk_of(run.expert, net, device_type),
            }
        }
        layout = {
            "size": net.size,
            "trainable": net.trainable,
            "names": list(net.flat.names),
            "shapes": [list(shape) for shape in net.flat.shapes],
        }
        writer = BufferWriter(Store(run.experts_at), fingerprint, layout)
        return cls(run, units, splits, transform, net, device_type, writer)

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


def build_unit(plan: ExpertPlan, unit: ExpertUnit) -> Built:
    """Train the experts of one unit and commit their shard; a divergence is recorded, not retried."""
    run, began = plan.run, time.monotonic()
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
            commit = shard.publish(made_by())
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


def made_by() -> dict[str, str]:
    """Versions that may change a row's last bits."""
    return {"rayd": VERSION, "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


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
