"""Recipes: how a network is trained for a score. The published settings are files under configs/recipe.

Steps are fixed where the papers count epochs of the set at hand: at 1 and 10 images per class their batch of 256 holds
the whole set, so an epoch is a step; larger sets get the same steps, which is said wherever a number stands. What the
papers do besides and we do not: choose the best epoch or checkpoint on the test set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rayd.data.augment import AugmentConfig
from rayd.errors import refuse
from rayd.nets.convnet import NetConfig


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """How a network is trained for a score; the defaults are the CPU-scale recipe, DSA's evaluation in 1000 steps."""

    name: str = "cpu"
    """What tables call it."""
    steps: int = 1000
    """Of one network's training."""
    batch: int = 256
    """At most; a smaller set is one batch."""
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    """Of the network's weights."""
    lr: float = 0.01
    """Where the step size is not learned."""
    learned: bool = False
    """Train with the step size that the artifact learned instead of lr."""
    momentum: float = 0.9
    """sgd's; adam's betas are fixed."""
    weight_decay: float = 5e-4
    """Of every parameter."""
    schedule: Literal["constant", "half", "fifths", "cosine"] = "half"
    """half: a tenth, and momentum afresh, from half-way on; fifths: halved at 1/5, 2/5, 3/5, 4/5; cosine: to zero."""
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    """Of the training images; null: none."""
    cutmix: float = 0.0
    """Share of batches in which a box of each image comes from another (lambda uniform)."""
    mixup: float = 0.0
    """Alpha of the Beta(alpha, alpha) that mixes every batch; 0: none."""
    labels: Literal["hard", "soft", "teacher"] = "soft"
    """hard: classes; soft: probabilities as stored (one-hot where none are); teacher: asked at every step."""
    temperature: float = 1.0
    """Of the teacher's and the student's logits."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the networks."""
    seeds: int = 5
    """Networks of each kind."""
    nets: tuple[NetConfig, ...] = ()
    """Architectures; the run's own where empty."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "seeds", "lr", "temperature"):
            if not getattr(self, name) > 0:
                raise refuse(f"recipe.{name}", getattr(self, name), "a number above zero")
        if not 0 <= self.cutmix <= 1 or self.mixup < 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise refuse("recipe", self.name, "cutmix 0 to 1, mixup and weight_decay from 0, momentum 0 to below 1")
