"""Recipes: how a network is trained for a score. The published settings are files under configs/recipe.

The papers count epochs of the set that is scored: `epochs`, of ceil(n / batch) steps each, with schedules by epoch. A
recipe of `steps` trains on every set for as long, which is what CPU-scale tables do and say. What the papers do besides and
we do not: choose the best epoch or checkpoint on the test set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from rayd.data.augment import AugmentConfig
from rayd.errors import refuse
from rayd.nets.convnet import NetConfig

STEPS = 1000
"""Of a recipe that names neither steps nor epochs."""
FEWEST = 2
"""Networks of a row before the first look at the verdict: fewer have no deviation."""


@dataclass(frozen=True)
class Length:
    """How long a network is trained on one set."""

    steps: int
    epoch: int = 1
    """Steps of an epoch, after each of which the schedule moves; 1 where the recipe counts steps."""

    @property
    def epochs(self) -> int:
        return self.steps // self.epoch


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """How a network is trained for a score; the defaults are the CPU-scale recipe, DSA's evaluation in 1000 steps."""

    name: str = "cpu"
    """What tables call it."""
    steps: int | None = None
    """Of one network's training, the same on every set; 1000 where epochs are not given either."""
    epochs: int | None = None
    """Passes over the set, instead of steps: what the papers count."""
    epoch: Literal["stored", "decoded"] = "stored"
    """What a pass goes through. stored: as many images as the set's numbers would fill as plain pixels, for a factorised
    set decodes to many more; decoded: every image. Plain pixels and real images are the same under both."""
    full_epochs: int | None = None
    """Passes over the training set by the control `full`; null: as long as the distilled set is trained on."""
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
    """half: a tenth, and momentum afresh, after half the epochs and one; fifths: halved at 1/5, 2/5, 3/5, 4/5; cosine: to
    zero. By epoch, or by step where the recipe counts steps."""
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
    """Networks of each row."""
    until: Literal["seeds", "verdict"] = "seeds"
    """seeds: every row has so many networks. verdict: every row has two, and one is added at a time to the rows that are
    compared, until each comparison is decided or they have so many."""
    nets: tuple[NetConfig, ...] = ()
    """Architectures; the run's own where empty."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise refuse("recipe.epochs", self.epochs, "null beside recipe.steps", "add recipe.steps=null")
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "steps", STEPS)
        for name in ("steps", "epochs", "full_epochs", "batch", "seeds", "lr", "temperature"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise refuse(f"recipe.{name}", getattr(self, name), "a number above zero")
        if not 0 <= self.cutmix <= 1 or self.mixup < 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise refuse("recipe", self.name, "cutmix 0 to 1, mixup and weight_decay from 0, momentum 0 to below 1")

    def length(self, decoded: int, stored: int) -> Length:
        """For a set of so many images, whose numbers would fill so many as plain pixels."""
        if self.epochs is None:
            return Length(self.steps or STEPS)
        images = min(stored, decoded) if self.epoch == "stored" else decoded
        epoch = math.ceil(images / min(self.batch, images))
        return Length(self.epochs * epoch, epoch)

    @property
    def of_full(self) -> RecipeConfig:
        """The same for the whole training set."""
        return replace(self, steps=None, epochs=self.full_epochs) if self.full_epochs else self

    @property
    def looks(self) -> int:
        """How often a comparison may be looked at before its networks are all there."""
        return max(1, self.seeds - FEWEST + 1) if self.until == "verdict" else 1

    def shortened(self, steps: int) -> RecipeConfig:
        """The same for so many steps."""
        return replace(self, steps=max(1, steps), epochs=None)
