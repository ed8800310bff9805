"""What a score table says: whether the set beats the coresets, and DD-Ranking's scores.

DD-Ranking's scores take labels and augmentation out of a comparison; on accuracies as fractions.

    HLR = acc(real, hard) - acc(syn, hard)          what hard labels alone lose against the real set
    IOR = acc(syn, own) - acc(random, own)          what the images gain over random ones under the method's labels
    LRS = (e^a - e^-1) / (e - e^-1), a = w IOR - (1 - w) HLR
    ARS = the same of b = g (acc(syn, aug) - acc(random, aug)) + (1 - g) (acc(syn, plain) - acc(random, plain))

Both map -1..1 onto 0..1; nothing gained and nothing lost is 0.269. Read them beside HLR and IOR, never alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rayd.errors import refuse
from rayd.evaluate.row import RowName
from rayd.numbers import difference

Row = Mapping[str, Any]


def concluded(rows: Sequence[Row], net: str, looks: int = 1) -> dict[str, Any]:
    """What the rows of the first network say."""
    first = [row for row in rows if row["net"] == net]
    return {"verdict": verdict(first, looks), "robust": robust({row["set"]: row["mean"] for row in first})}


def verdict(rows: Sequence[Row], looks: int = 1) -> dict[str, Any]:
    """Does it beat the coreset? yes: better than each, by more than chance; no: one is better by more than chance.

    Welch's interval of the difference, 95 %. Asked at equal floats and at equal bytes; overall is yes only if both are.
    Where networks were added after each of several looks, the 95 % are those of all looks together (rayd.numbers).
    """
    words: dict[str, list[str]] = {"floats": [], "bytes": []}
    why = []
    for distilled, row in compared(rows):
        name = RowName.parse(row["set"])
        gap, wide = difference(distilled, row, looks)
        word = "yes" if gap - wide > 0 else "no" if gap + wide < 0 else "undecided"
        words["floats" if name.budget == "floats" else "bytes"].append(word)
        over = f" over {looks} looks" if looks > 1 else ""
        why.append(f"{name}: {100 * gap:+.1f} points (95 % ± {100 * wide:.1f}{over}): {word}")
    by_budget = {budget: worst(verdicts) for budget, verdicts in words.items()}
    overall = worst([word for word in by_budget.values() if word != "not asked"])
    return {**by_budget, "overall": overall, "why": why}


def compared(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The set's own row beside each of the coresets'."""
    own = [row for row in rows if row["set"] == "distilled"]
    names = [(row, RowName.parse(row["set"])) for row in rows]
    return [(own[0], row) for row, name in names if own and name.is_coreset and not name.way]


def undecided(rows: Sequence[Row], looks: int) -> set[str]:
    """Rows whose comparison may go either way: those that another network is worth adding to."""
    pairs = [(pair, difference(*pair, looks)) for pair in compared(rows)]
    return {row["set"] for pair, (gap, wide) in pairs if abs(gap) <= wide for row in pair}


def worst(words: Sequence[str]) -> str:
    if not words:
        return "not asked"
    return "no" if "no" in words else "undecided" if "undecided" in words else "yes"


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


def robust(means: Mapping[str, float]) -> dict[str, float]:
    """What can be said from a score table's means by row; hard labels are the set's own where it stores no others."""
    out: dict[str, float] = {}
    if not {"distilled", "random@floats"} <= set(means):
        return out
    own, random, hard = means["distilled"], means["random@floats"], means.get("distilled/hard", means["distilled"])
    real = means.get("full/hard", means.get("full"))
    out["ior"] = ior(own, random)
    if real is not None:
        out |= {"hlr": hlr(real, hard), "lrs": lrs(real, hard, own, random)}
    if {"distilled/bare", "random@floats/bare"} <= set(means):
        out["ars"] = ars(own, random, means["distilled/bare"], means["random@floats/bare"])
    return out
