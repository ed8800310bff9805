"""Experts: networks trained plainly on the real images, whose parameters at the end of every epoch are what is matched.

`train` is a generator of Snapshots for the experts of one shard, on one device: images stay there as uint8 and are
augmented in batches. On a GPU the experts advance together, stacked under vmap; on a CPU one after another, compiled,
in bf16 and channels-last. Plain SGD as in the papers' buffers (MTT: lr 0.01, batch 256, no momentum), with momentum,
weight decay and schedules for teachers and pools, and the sharpness-aware steps of FTD and DATM.

Shapes: K experts at once, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from rayd.augment import AugmentConfig, Transform
from rayd.compiler import can_compile
from rayd.data import Images
from rayd.errors import Failed, refuse
from rayd.nets import Net
from rayd.seeds import generator, seed_of
from rayd.sgd import Ground
from rayd.strict import positive
from rayd.trajectory import Snapshot


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """How experts are trained and what of them is kept."""

    experts: int = 100
    """Networks of the buffer."""
    per_shard: int = 5
    """Experts of one work unit and shard: what is lost when a worker dies."""
    epochs: int = 50
    """Length of the training; no more of it is run than the recipe can match (see `keep`)."""
    lr: float = 0.01
    """Of SGD."""
    batch: int = 256
    """Real images of one step."""
    momentum: float = 0.0
    """Of SGD."""
    weight_decay: float = 0.0
    """Of every parameter."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """cosine: to zero at the last epoch; step: times `gamma` at every one of `drops`."""
    drops: tuple[float, ...] = (0.5,)
    """Shares of the epochs after which the rate falls."""
    gamma: float = 0.1
    """What the rate is multiplied by at a drop."""
    sam: float = 0.0
    """Radius rho of the adaptive sharpness-aware step; 0: plain SGD."""
    sam_alpha: float = 0.3
    """GSAM's share of the orthogonal part that is subtracted."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Of the real images at every step."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the network; parameters, statistics and the loss stay fp32."""
    compiled: bool = True
    """Whether the step is compiled by torch.compile."""
    engine: Literal["auto", "stacked", "single"] = "auto"
    """stacked: all experts of a shard at once; single: one after another; auto: stacked on a GPU."""
    keep: Literal["matched", "all", "ends"] = "matched"
    """matched: to the last epoch the recipe can match; all: every epoch; ends: first and last (pools, teachers)."""
    storage: Literal["fp32", "fp16"] = "fp32"
    """The type of the rows on disk."""
    check: int = 1000
    """Validation images that each snapshot is scored on."""
    max_failed: float = 0.1
    """Share of diverged units above which the whole run counts as failed."""

    def __post_init__(self) -> None:
        for name in ("experts", "per_shard", "epochs", "lr", "batch"):
            positive(f"expert.{name}", getattr(self, name))
        for name in ("weight_decay", "sam", "sam_alpha", "check"):
            if getattr(self, name) < 0:
                raise refuse(f"expert.{name}", getattr(self, name), "zero or more")
        if not 0 <= self.momentum < 1:
            raise refuse("expert.momentum", self.momentum, "from 0 to below 1")
        if not 0 <= self.max_failed <= 1:
            raise refuse("expert.max_failed", self.max_failed, "a share from 0 to 1")

    def recipe(self) -> dict[str, Any]:
        """What decides the numbers in a row; not how many experts there are, nor how long they train where free."""
        names = ["lr", "batch", "momentum", "weight_decay", "schedule", "sam", "precision", "storage"]
        if self.sam:
            names.append("sam_alpha")
        if self.schedule != "constant":
            names.append("epochs")
        if self.schedule == "step":
            names += ["drops", "gamma"]
        augment = self.augment
        plain = {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in names}
        plain |= {"batches": "whole"}
        return plain | {"augment": {"ops": list(augment.ops), "policy": augment.policy, "share": augment.share}}

    def kept(self, last_epoch: int | None) -> tuple[int, ...]:
        """The epochs whose snapshots are stored, when `last_epoch` is the last that the recipe can match."""
        last = self.epochs if last_epoch is None else last_epoch
        if last > self.epochs:
            raise refuse("expert.epochs", self.epochs, f"at least {last}, the last epoch that the method can match")
        if self.keep == "ends":
            return (0, self.epochs)
        return tuple(range((self.epochs if self.keep == "all" else last) + 1))

    def rate(self, epoch: int) -> float:
        """The learning rate in epoch 1, 2, ..."""
        done = (epoch - 1) / self.epochs
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "step":
            return self.lr * self.gamma ** sum(done >= drop for drop in self.drops)
        return self.lr

    def stacks(self, device_type: str) -> bool:
        return self.engine == "stacked" or (self.engine == "auto" and device_type == "cuda")

    def path(self, device_type: str) -> str:
        """How the arithmetic is run, which is part of what a row's bytes depend on."""
        way = "compiled" if self.compiled and can_compile(device_type) else "eager"
        return f"{device_type} {'stacked' if self.stacks(device_type) else 'single'} {way}"


@dataclass(frozen=True)
class Unit:
    """One shard's worth of work, named before it runs."""

    number: int
    experts: tuple[int, ...]
    seeds: tuple[int, ...]
    epochs: tuple[int, ...]
    """Of the snapshots that are kept."""

    @property
    def name(self) -> str:
        return f"experts-{self.number:05d}"

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key_of(k) for k in self.experts)


def key_of(expert: int) -> str:
    """The WebDataset key of an expert; of fixed width, so that names sort as numbers do."""
    return f"expert-{expert:06d}"


def plan_units(config: ExpertConfig, seed: int, last_epoch: int | None = None) -> list[Unit]:
    """All units of a run. Expert k is the same whatever the number of experts and units."""
    epochs, size = config.kept(last_epoch), config.per_shard
    groups = [tuple(range(first, min(first + size, config.experts))) for first in range(0, config.experts, size)]
    return [Unit(n, group, tuple(seed_of(seed, "expert", k) for k in group), epochs) for n, group in enumerate(groups)]


class Diverged(Failed):
    """Training left the numbers; `numbers` says where."""

    def __init__(self, expert: int, epoch: int, losses: Sequence[float]) -> None:
        shown = [loss if math.isfinite(loss) else None for loss in losses]
        said = ", ".join(f"{loss:.3g}" for loss in losses)
        super().__init__(
            f"expert {expert} diverged in epoch {epoch} (losses {said}); no other seed is tried: lower expert.lr"
        )
        self.numbers: dict[str, Any] = {"expert": expert, "epoch": epoch, "losses": shown}


def train(
    config: ExpertConfig,
    net: Net,
    transform: Transform,
    images: Images,
    seeds: Sequence[int],
    *,
    epochs: int | None = None,
    experts: Sequence[int] | None = None,
    val: Images | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Snapshot]:
    """Snapshots 0 to `epochs` of one expert per seed. On a CPU an expert is finished before the next begins."""
    device = torch.device(device)
    numbers = list(experts if experts is not None else range(len(seeds)))
    stacked = config.stacks(device.type)
    ground = Ground(config, net, transform.to(device), images, val, device, stacked)
    places = [list(range(len(seeds)))] if stacked else [[place] for place in range(len(seeds))]
    for group in places:
        yield from _advance(
            ground, [seeds[i] for i in group], [numbers[i] for i in group], config.epochs if epochs is None else epochs
        )


def _advance(ground: Ground, seeds: Sequence[int], numbers: Sequence[int], epochs: int) -> Iterator[Snapshot]:
    """The experts of one group, side by side."""
    config, net = ground.config, ground.net
    theta_KP = torch.stack([net.init(generator(seed, "init")) for seed in seeds]).to(ground.device)
    velocity_KP = torch.zeros_like(theta_KP) if config.momentum else None
    history: list[list[float]] = [[] for _ in seeds]
    for epoch in range(epochs + 1):
        if epoch:
            losses_K = torch.zeros(len(seeds), device=ground.device)
            count = 0
            for x, y_KB in ground.batches(seeds, epoch):
                losses_K += ground.step(theta_KP, velocity_KP, x, y_KB, config.rate(epoch)) * y_KB.shape[1]
                count += y_KB.shape[1]
            finite_K = theta_KP.isfinite().all(1)
            for k, loss in enumerate((losses_K / count).tolist()):
                history[k].append(loss)
                if not (math.isfinite(loss) and bool(finite_K[k])):
                    raise Diverged(numbers[k], epoch, history[k])
        accuracies = ground.accuracies(theta_KP)
        for k, number in enumerate(numbers):
            metrics = {"train_loss": history[k][-1]} if epoch else {}
            if accuracies is not None:
                metrics["val_accuracy"] = accuracies[k]
            yield Snapshot(number, epoch, theta_KP[k].detach().to("cpu", copy=True), metrics)
