"""A few real steps of each stage on the real device: seconds and peak memory, each stage in a process of its own.

Where the run's buffer does not exist yet, a pretend one of a single expert is written to a temporary folder in the real
format, so that what is measured is the real path, range reads and checks included.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from rayd.config import Run
from rayd.data.images import Images
from rayd.distill.contract import Codec
from rayd.errors import Refused
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.score import WORTH, evaluate
from rayd.experts.buffer import Buffer, BufferWriter
from rayd.experts.train import train
from rayd.experts.trajectory import Snapshot, Trajectory
from rayd.machine import device_for, device_kind, peak_memory, use_threads
from rayd.run.assemble import assemble, last_matched
from rayd.run.experts import ExpertPlan, units_of
from rayd.run.recorder import distillation
from rayd.schema import parse, to_dict
from rayd.seeds import generator

STAGES = ("experts", "distill", "evaluate")
BATCHES = 8
"""Of each epoch of the experts' probe."""


def request(run: Run, stage: str, seconds: float) -> dict[str, Any]:
    """What `run_stage` takes, as plain values: a stage's share of the seconds, and when it was asked."""
    return {"run": to_dict(run), "stage": stage, "seconds": seconds / len(STAGES), "asked": time.time()}


def run_stage(spec: Mapping[str, Any]) -> dict[str, float]:
    """One stage in this process, begun at `asked` (seconds since the epoch): `peak` bytes of the whole process, and
    `process_s` before it was ready for work."""
    run = parse(Run, spec["run"])
    use_threads(run.scale.threads)
    stage = {"experts": experts, "distill": distill, "evaluate": scoring}[spec["stage"]]
    if any((run.expert.compiled, run.method.compiled, (run.recipe.steps or WORTH) >= WORTH)):
        import torch._inductor.compile_fx  # noqa: F401  # some seconds, and no part of a first step
    ready = time.time()
    figures = stage(run, float(spec["seconds"]))
    return {"peak": peak(run), **figures, "process_s": max(0.0, ready - spec["asked"])}


def peak(run: Run) -> float:
    return float(peak_memory(device_kind(run.scale.gpus)))


def experts(run: Run, seconds: float) -> dict[str, float]:
    """`image_s`: seconds an image; `check_s`: a snapshot's look at the validation images; `cold_s`, `warm_s`: what a first
    and a later shard spend before that pace."""
    plan = ExpertPlan.open(run)
    config = replace(run.expert, epochs=10**6)
    train_set, val_set = plan.splits.train, plan.splits.val
    some = train_set.select(torch.arange(min(len(train_set), BATCHES * config.batch)))
    seeds = plan.units[0].seeds if config.stacks(plan.device_type) else plan.units[0].seeds[:1]

    def epochs(val: Images | None) -> list[float]:
        """Seconds of the first epoch and of later ones."""
        began, times = time.perf_counter(), list[float]()
        for snapshot in train(config, plan.net, plan.transform, some, seeds, val=val, device=plan.device_type):
            if snapshot.epoch == 0 or snapshot.expert != 0:
                continue
            now = time.perf_counter()
            times.append(now - began - sum(times))
            if len(times) >= 2 and now - began > seconds / 3:
                break
        return times

    cold, warm, bare = epochs(val_set), epochs(val_set), epochs(None)
    later = median(bare[1:])
    with tempfile.TemporaryDirectory(prefix="rayd-plan-") as folder:
        pretend(run, folder).finish()  # for the memory that writing takes
    return {
        "image_s": later / len(some) / len(seeds),
        "check_s": max(0.0, median(warm[1:]) - later) / len(seeds),
        "cold_s": max(0.0, cold[0] - median(cold[1:])),
        "warm_s": max(0.0, warm[0] - median(warm[1:])),
    }


def distill(run: Run, seconds: float) -> dict[str, float]:
    """`start_s`: until the first step, without it; `first_s`: what it takes more than another; `step_s`: a step.

    The run that follows finds what the probe compiled in the compiler's cache: so the first step is one that does.
    """
    with tempfile.TemporaryDirectory(prefix="rayd-plan-") as folder:
        run = supplied(run, folder)
        began = time.perf_counter()
        assembled = assemble(run, device_for(run.scale.gpus))
        start = time.perf_counter() - began
        for _ in distillation(assembled).run():
            break
        torch.compiler.reset()
        work = distillation(assemble(run, device_for(run.scale.gpus)))
        times = []
        for step in work.run():
            times.append(step.seconds)
            if len(times) >= 3 and sum(times[1:]) > seconds:
                break
        later = median(times[1:]) if len(times) > 1 else times[0]
        moved = sum(p.numel() for player in work.players for p in player.params)
    return {
        "start_s": start,
        "first_s": max(0.0, times[0] - later),
        "step_s": later,
        "items": len(assembled.objective.plan(0)),
        "reduced": 8.0 * (3 + moved),
    }


def scoring(run: Run, seconds: float) -> dict[str, float]:
    """`net_s`: seconds to train and test one network of the run's own architecture on the set; `real_s` and
    `real_peak`: on real images; `cold_s`: before the first."""
    with tempfile.TemporaryDirectory(prefix="rayd-plan-") as folder:
        assembled = assemble(supplied(run, folder), device_for(run.scale.gpus))
        recipe, total = run.recipe, ImageSet.of(assembled.codec).length(run.recipe).steps
        compiles = total >= WORTH
        if recipe.labels == "teacher":  # it is not there yet; its forward pass is left out
            recipe = replace(recipe, labels="hard")

        def took(source: Codec | Images, steps: int) -> float:
            began = time.perf_counter()
            evaluate(
                recipe.shortened(steps), assembled.inputs.net, source, assembled.splits.test,
                assembled.inputs.transform, [0], device=assembled.device, step_size=assembled.objective.step_size(),
                compile=compiles,
            )  # fmt: skip
            return time.perf_counter() - began

        def network(source: Codec | Images) -> tuple[float, float]:
            few = max(1, min(total // 4, 10))
            first, short, more = took(source, few), took(source, few), 2 * few
            while (long := took(source, more)) < max(seconds / 3, 2 * short) and more < total:
                more *= 2
            step = max(0.0, long - short) / (more - few)
            return short + step * (total - few), max(0.0, first - short)

        net, cold = network(assembled.codec)
        figures = {"net_s": net, "cold_s": cold, "peak": peak(run)}
        return {**figures, "real_s": network(assembled.splits.train)[0], "real_peak": peak(run)}


def supplied(run: Run, folder: str) -> Run:
    """The run; on a pretend buffer where it needs one and has none."""
    if not run.method.reads_experts:
        return run
    try:
        enough = Buffer(run.experts_at).last_epoch >= (last_matched(run) or run.expert.epochs)
    except Refused:
        enough = False
    return run if enough else replace(run, buffer=pretend(run, folder).store.uri)


def pretend(run: Run, folder: str) -> BufferWriter:
    """A buffer of one expert that wanders: real format, real size of a row."""
    plan = ExpertPlan.open(replace(run, buffer=f"{folder}/experts"))
    plan.writer.claim()
    unit = units_of(replace(run, expert=replace(run.expert, experts=1)))[0]
    rng = generator(run.seed, "pretend")
    theta = plan.net.init(rng)
    snapshots = []
    for epoch in unit.epochs:
        snapshots.append(Snapshot(0, epoch, theta.clone(), {}))
        theta = theta + 0.01 * torch.randn(theta.shape, generator=rng) * theta.abs().mean()
    with plan.writer.shard(unit.name, run.expert.storage) as shard:
        shard.add(Trajectory.of(snapshots), seed=unit.seeds[0])
        shard.publish({})
    return plan.writer
