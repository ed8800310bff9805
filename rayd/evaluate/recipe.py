"""Recipes: how a network is trained for a score, said once, with the published settings under their names.

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
    """How a network is trained for a score. Named ones are in rayd.evaluate.recipe."""

    name: str = "cpu"
    steps: int = 1000
    batch: int = 256
    """At most; a smaller set is one batch."""
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.01
    learned: bool = False
    """Train with the step size that the artifact learned instead of lr."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["constant", "half", "fifths", "cosine"] = "half"
    """half: a tenth, and momentum afresh, from half-way on; fifths: halved at 1/5, 2/5, 3/5, 4/5; cosine: to zero."""
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    cutmix: float = 0.0
    """Share of batches in which a box of each image comes from another (lambda uniform)."""
    mixup: float = 0.0
    """Alpha of the Beta(alpha, alpha) that mixes every batch; 0: none."""
    labels: Literal["hard", "soft", "teacher"] = "soft"
    """hard: classes; soft: probabilities as stored (one-hot where none are); teacher: asked at every step."""
    temperature: float = 1.0
    """Of the teacher's and the student's logits."""
    precision: Literal["fp32", "bf16"] = "fp32"
    seeds: int = 5
    """Networks of each kind."""
    nets: tuple[NetConfig, ...] = ()
    """Architectures; the run's own where empty."""

    def __post_init__(self) -> None:
        allowed = {"optimiser": ("sgd", "adam", "adamw"), "schedule": ("constant", "half", "fifths", "cosine"),
                   "labels": ("hard", "soft", "teacher"), "precision": ("fp32", "bf16")}  # fmt: skip
        for name, words in allowed.items():
            if getattr(self, name) not in words:
                raise refuse(f"recipe.{name}", getattr(self, name), " | ".join(words))
        for name in ("steps", "batch", "seeds", "lr", "temperature"):
            if not getattr(self, name) > 0:
                raise refuse(f"recipe.{name}", getattr(self, name), "a number above zero")
        if not 0 <= self.cutmix <= 1 or self.mixup < 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise refuse("recipe", self.name, "cutmix 0 to 1, mixup and weight_decay from 0, momentum 0 to below 1")


CROP_FLIP = AugmentConfig(ops=("crop", "flip"), policy="always")
NCFM = AugmentConfig(ops=("color", "crop", "flip", "scale", "rotate"), policy="always")
ZOO = (
    NetConfig(width=32), NetConfig(name="resnet18", width=16), NetConfig(name="vgg11", width=16),
    NetConfig(name="alexnet", width=32), NetConfig(name="vit", width=48),
)  # fmt: skip
"""Small ones of every kind, for tables on a CPU."""

RECIPES: dict[str, RecipeConfig] = {
    "cpu": RecipeConfig(name="cpu"),
    "quick": RecipeConfig(name="quick", steps=200, seeds=2),
    "plain": RecipeConfig(
        name="plain", steps=300, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant", augment=None,
    ),
    "dc": RecipeConfig(name="dc", steps=300, augment=None),
    "dsa": RecipeConfig(name="dsa", steps=1000),
    "mtt": RecipeConfig(name="mtt", learned=True),
    "ncfm": RecipeConfig(
        name="ncfm", steps=2000, batch=128, optimiser="adamw", lr=1e-3, weight_decay=0.01, schedule="fifths",
        augment=NCFM, cutmix=0.5, seeds=10,
    ),
    "sre2l": RecipeConfig(
        name="sre2l", steps=400, batch=128, optimiser="adamw", lr=1e-3, weight_decay=0.01, schedule="cosine",
        augment=CROP_FLIP, mixup=0.8, labels="teacher", temperature=30.0, seeds=3,
    ),
    "cross": RecipeConfig(name="cross", steps=300, seeds=2, nets=ZOO),
}  # fmt: skip
"""cpu: the CPU-scale protocol, DSA's evaluation with 1000 steps. plain: gradient descent that anyone can retype.

dc: Zhao et al. 2021 (DC-BENCH without augmentation). dsa: the same, augmented. mtt: Cazenavette et al. 2022, with the
learned step size. ncfm: Wang et al. 2025; 2000 steps stand for its long evaluation. sre2l: the relabelling family (DWA
on CIFAR), the teacher asked at every step. cross: five small architectures, two networks each.
"""


def named(name: str) -> RecipeConfig:
    if name not in RECIPES:
        raise refuse("recipe", name, " | ".join(RECIPES))
    return RECIPES[name]
