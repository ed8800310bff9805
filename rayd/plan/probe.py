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
from torch import Tensor

from rayd.buffer import Buffer
from rayd.compiler import settle
from rayd.config import Run
from rayd.errors import Refused
from rayd.evaluate import evaluate
from rayd.expert import plan_units, train
from rayd.foundry import Shop, last_matched
from rayd.run import default_device, peak_memory
from rayd.seeds import generator
from rayd.setting import Setting, assemble
from rayd.strict import parse
from rayd.trajectory import Snapshot, Trajectory

STAGES = ("experts", "distill", "evaluate")
BATCHES = 8
"""Of each epoch of the experts' probe."""


def run_stage(spec: Mapping[str, Any]) -> dict[str, float]:
    """One stage in this process; `peak` is that of the whole process."""
    run = parse(Run, spec["run"])
    settle(run.scale.threads)
    stage = {"experts": experts, "distill": distill, "evaluate": scoring}[spec["stage"]]
    told = stage(run, float(spec["seconds"]))
    told["peak"] = float(peak_memory(default_device()))
    return told


def experts(run: Run, seconds: float) -> dict[str, float]:
    """`image_s`: seconds an image; `cold_s`, `warm_s`: what a first and a later shard spend before that pace."""
    shop = Shop.open(run)
    config = replace(run.expert, epochs=10**6)
    some = shop.train.select(torch.arange(min(len(shop.train), BATCHES * config.batch)))
    seeds = shop.units[0].seeds if config.stacks(shop.device_type) else shop.units[0].seeds[:1]
    spent, images = {}, len(some) * len(seeds)
    times: list[float] = []
    for which in ("cold", "warm"):
        began, times = time.perf_counter(), []
        snapshots = train(config, shop.net, shop.transform, some, seeds, device=shop.device_type)
        for snapshot in snapshots:
            if snapshot.epoch == 0 or snapshot.expert != 0:
                continue
            now = time.perf_counter()
            times.append(now - began - sum(times))
            if len(times) >= 2 and now - began > seconds / 2:
                break
        spent[which] = max(0.0, times[0] - median(times[1:]))
    return {"image_s": median(times[1:]) / images, "cold_s": spent["cold"], "warm_s": spent["warm"]}


def distill(run: Run, seconds: float) -> dict[str, float]:
    """`start_s`: until the first step, without it; `first_s`: what it takes more than another; `step_s`: a step."""
    with tempfile.TemporaryDirectory(prefix="rayd-plan-") as folder:
        began = time.perf_counter()
        setting = assembled(run, folder)
        sent: list[int] = []

        def count(flat: Tensor) -> Tensor:
            sent.append(flat.numel() * flat.element_size())
            return flat

        work = setting.distillation((0, 1), count)
        start = time.perf_counter() - began
        times = []
        for step in work.run():
            times.append(step.seconds)
            if len(times) >= 3 and sum(times[1:]) > seconds:
                break
        later = median(times[1:]) if len(times) > 1 else times[0]
        items = setting.objective.plan(0)
        moved = sum(p.numel() for player in work.players for p in player.params)
    return {
        "start_s": start,
        "first_s": max(0.0, times[0] - later),
        "step_s": later,
        "items": len(items),
        "reduced": 4.0 * (3 + moved),
    }


def scoring(run: Run, seconds: float) -> dict[str, float]:
    """`net_s`: seconds to train and test one network of the run's own architecture; `cold_s`: before the first."""
    with tempfile.TemporaryDirectory(prefix="rayd-plan-") as folder:
        setting = assembled(run, folder)

        def took(steps: int) -> float:
            began = time.perf_counter()
            evaluate(
                replace(run.recipe, steps=steps), setting.world.net, setting.codec, setting.splits.test,
                setting.world.transform, [0], device=setting.device, step_size=setting.step_size(),
            )  # fmt: skip
            return time.perf_counter() - began

        few = max(2, min(run.recipe.steps // 4, 10))
        first, short = took(few), took(few)
        more = 2 * few
        while (long := took(more)) < seconds / 2 and more < run.recipe.steps:
            more *= 2
    step = max(0.0, long - short) / (more - few)
    return {"net_s": short + step * (run.recipe.steps - few), "cold_s": max(0.0, first - short)}


def assembled(run: Run, folder: str) -> Setting:
    """The run's own parts; on a pretend buffer where it needs one and has none."""
    if run.method.reads_experts:
        needed = last_matched(run) or run.expert.epochs
        try:
            enough = Buffer(run.experts_at).last_epoch >= needed
        except Refused:
            enough = False
        if not enough:
            run = replace(run, buffer=pretend(run, folder))
    return assemble(run, default_device())


def pretend(run: Run, folder: str) -> str:
    """A buffer of one expert that wanders: real format, real size of a row."""
    shop = Shop.open(replace(run, buffer=f"{folder}/experts"))
    shop.writer.claim()
    unit = plan_units(replace(run.expert, experts=1), run.seed, last_matched(run))[0]
    rng = generator(run.seed, "pretend")
    theta = shop.net.init(rng)
    snapshots = []
    for epoch in unit.epochs:
        snapshots.append(Snapshot(0, epoch, theta.clone(), {}))
        theta = theta + 0.01 * torch.randn(theta.shape, generator=rng) * theta.abs().mean()
    with shop.writer.shard(unit.name, run.expert.storage) as shard:
        shard.add(Trajectory.of(snapshots), seed=unit.seeds[0])
        shard.publish({})
    return shop.writer.store.uri
