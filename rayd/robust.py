"""DD-Ranking's scores, which take labels and augmentation out of a comparison; on accuracies as fractions.

    HLR = acc(real, hard) - acc(syn, hard)          what hard labels alone lose against the real set
    IOR = acc(syn, own) - acc(random, own)          what the images gain over random ones under the method's labels
    LRS = (e^a - e^-1) / (e - e^-1), a = w IOR - (1 - w) HLR
    ARS = the same of b = g (acc(syn, aug) - acc(random, aug)) + (1 - g) (acc(syn, plain) - acc(random, plain))

Both map -1..1 onto 0..1; nothing gained and nothing lost is 0.269. Read them beside HLR and IOR, never alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rayd.errors import refuse
from rayd.evaluate import summary
from rayd.exam import Ask, Exam
from rayd.recipes import RecipeConfig


def hlr(real_hard: float, syn_hard: float) -> float:
    return real_hard - syn_hard


def ior(syn_own: float, random_own: float) -> float:
    return syn_own - random_own


def lrs(real_hard: float, syn_hard: float, syn_own: float, random_own: float, weight: float = 0.5) -> float:
    return scaled(weight * ior(syn_own, random_own) - (1 - weight) * hlr(real_hard, syn_hard))


def ars(syn_aug: float, random_aug: float, syn_plain: float, random_plain: float, weight: float = 0.5) -> float:
    return scaled(weight * (syn_aug - random_aug) + (1 - weight) * (syn_plain - random_plain))


def scaled(a: float) -> float:
    """-1..1 onto 0..1."""
    if not -1 - 1e-9 <= a <= 1 + 1e-9:
        raise refuse("accuracy", a, "fractions from 0 to 1, not per cent")
    return (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))


def measure(exam: Exam, seeds: Sequence[int]) -> dict[str, Any]:
    """Both scores of the artifact (random: random real images of as many floats) and what they rest on."""
    own = exam.recipe
    hard = replace(own, labels="hard")
    bare = replace(own, augment=None, cutmix=0.0, mixup=0.0)
    if own.augment is None:
        raise refuse("recipe.augment", None, "a recipe that augments, for ARS", "choose recipe=cpu or recipe=dsa")

    def accuracy(recipe: RecipeConfig, row: str) -> float:
        exam.recipe = recipe
        return float(summary(exam.answer(Ask(row, 0, tuple(seeds))))["mean"])

    try:
        real_hard, syn_hard = accuracy(hard, "full"), accuracy(hard, "distilled")
        syn_own, random_own = accuracy(own, "distilled"), accuracy(own, "random@floats")
        syn_bare, random_bare = accuracy(bare, "distilled"), accuracy(bare, "random@floats")
    finally:
        exam.recipe = own
    return {
        "hlr": hlr(real_hard, syn_hard), "ior": ior(syn_own, random_own),
        "lrs": lrs(real_hard, syn_hard, syn_own, random_own), "ars": ars(syn_own, random_own, syn_bare, random_bare),
        "real_hard": real_hard, "syn_hard": syn_hard, "syn_own": syn_own, "random_own": random_own,
        "syn_plain": syn_bare, "random_plain": random_bare, "recipe": own.name, "n": len(seeds),
    }  # fmt: skip
