"""The configuration of the experts, and the plan of their units."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from rayd.data.augment import AugmentConfig
from rayd.errors import refuse
from rayd.experts.trajectory import key_of
from rayd.machine import can_compile
from rayd.schema import positive
from rayd.seeds import seed_of

ROUNDING = 0.05
"""Epochs by which a share may be short of a whole number: 0.6667 of 60 is 40, as 2 * 60 // 3 is in the papers' code."""


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """How experts are trained and which snapshots are kept."""

    experts: int = 100
    """Networks of the buffer."""
    per_shard: int = 5
    """Experts of one work unit and shard."""
    epochs: int = 50
    """Length of the training; epochs that the method cannot match are not run (see `keep`)."""
    lr: float = 0.01
    """Of SGD."""
    batch: int = 256
    """Real images of one step."""
    last_batch: Literal["keep", "drop"] = "keep"
    """keep: the images that whole batches leave over make a smaller one, as in the published loaders; drop: they are left
    out, others in each epoch. A step on a handful of images at a high rate, just before the snapshot, costs it accuracy."""
    momentum: float = 0.0
    """Of SGD."""
    weight_decay: float = 0.0
    """Of every parameter."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """cosine: to zero at the last epoch; step: times `gamma` at every one of `drops`."""
    drops: tuple[float, ...] = (0.5,)
    """Shares of the epochs, rounded down to whole ones, after which the rate falls."""
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
    """matched: to the last epoch that the method can match, and the final one where it has a teacher; all: every epoch;
    ends: first and last (pools)."""
    micro: int = 0
    """Images of each expert in one pass, whose gradients are added up: divides memory, for the same result but for
    rounding. 0: all on a CPU, on a GPU as many as fit. Of no use to batch norm, whose statistics are those of a batch."""
    memory: float = 0.0
    """GiB that a stacked unit may take; 0: eight tenths of what is free on the GPU."""
    storage: Literal["fp32", "fp16"] = "fp32"
    """The type of the rows on disk."""
    check: int = 1000
    """Validation images that each snapshot is scored on, of every class its share."""
    max_failed: float = 0.1
    """Share of diverged units above which the whole run counts as failed."""

    def __post_init__(self) -> None:
        for name in ("experts", "per_shard", "epochs", "lr", "batch"):
            positive(f"expert.{name}", getattr(self, name))
        for name in ("weight_decay", "sam", "sam_alpha", "check", "micro", "memory"):
            if getattr(self, name) < 0:
                raise refuse(f"expert.{name}", getattr(self, name), "zero or more")
        if not 0 <= self.momentum < 1:
            raise refuse("expert.momentum", self.momentum, "from 0 to below 1")
        if not 0 <= self.max_failed <= 1:
            raise refuse("expert.max_failed", self.max_failed, "a share from 0 to 1")

    def recipe(self) -> dict[str, Any]:
        """The fields that decide the numbers of a row; a constant rate makes them independent of `epochs`."""
        names = ["lr", "batch", "momentum", "weight_decay", "schedule", "sam", "precision", "storage"]
        if self.sam:
            names.append("sam_alpha")
        if self.schedule != "constant":
            names.append("epochs")
        if self.schedule == "step":
            names += ["drops", "gamma"]
        augment = self.augment
        plain = {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in names}
        plain |= {"batches": "whole" if self.last_batch == "drop" else "all"}
        return plain | {"augment": {"ops": list(augment.ops), "policy": augment.policy, "share": augment.share}}

    def kept(self, last_epoch: int | None, teacher: bool = False) -> tuple[int, ...]:
        """The epochs whose snapshots are stored. `last_epoch`: the last that the method can match; `teacher`: whether it
        needs fully trained experts as well."""
        last = self.epochs if last_epoch is None else last_epoch
        if last > self.epochs:
            raise refuse("expert.epochs", self.epochs, f"at least {last}, the last epoch that the method can match")
        if self.keep == "ends":
            return (0, self.epochs)
        matched = range((self.epochs if self.keep == "all" else last) + 1)
        return (*matched, self.epochs) if teacher and self.epochs not in matched else tuple(matched)

    def rate(self, epoch: int) -> float:
        """The learning rate in epoch 1, 2, ..."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / self.epochs))
        if self.schedule == "step":
            return self.lr * self.gamma ** sum(epoch > int(drop * self.epochs + ROUNDING) for drop in self.drops)
        return self.lr

    def stacks(self, device_type: str) -> bool:
        return self.engine == "stacked" or (self.engine == "auto" and device_type == "cuda")

    def path(self, device_type: str) -> str:
        """The way the arithmetic is run, on which the last bits of a row depend."""
        elsewhere = device_type == "cuda" and not torch.cuda.is_available()  # whoever trains them has to look
        mode = "compiled" if self.compiled and (elsewhere or can_compile(device_type)) else "eager"
        return f"{device_type} {'stacked' if self.stacks(device_type) else 'single'} {mode}"


@dataclass(frozen=True)
class ExpertUnit:
    """The work of one shard, named before it runs."""

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


def plan_units(
    config: ExpertConfig, seed: int, last_epoch: int | None = None, teacher: bool = False
) -> list[ExpertUnit]:
    """All units of a run. Expert k is the same whatever the number of experts and units."""
    epochs, size = config.kept(last_epoch, teacher), config.per_shard
    groups = [tuple(range(first, min(first + size, config.experts))) for first in range(0, config.experts, size)]
    return [
        ExpertUnit(n, group, tuple(seed_of(seed, "expert", k) for k in group), epochs) for n, group in enumerate(groups)
    ]
