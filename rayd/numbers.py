"""Means, deviations and 95 % intervals, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)  # fmt: skip
"""Student's t at 97.5 %, by degrees of freedom from 1."""


def quantile(freedom: int) -> float:
    """Student's t at 97.5 % for these degrees of freedom."""
    return T975[max(freedom, 1) - 1] if freedom <= len(T975) else 1.96


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """mean, std (n - 1), n, and the 95 % t-interval of the mean: mean +- ci95."""
    n, centre = len(values), mean(values)
    std = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1)) if n > 1 else 0.0
    ci95 = quantile(n - 1) * std / math.sqrt(n) if n > 1 else 0.0
    return {"mean": centre, "std": std, "n": n, "ci95": ci95, "values": list(values)}


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float]:
    """Mean of a less mean of b, and half its 95 % interval (Welch); infinite where a deviation is unknown."""
    gap = a["mean"] - b["mean"]
    if a["n"] < 2 or b["n"] < 2:
        return gap, math.inf
    va, vb = (row["std"] ** 2 / row["n"] for row in (a, b))
    if va + vb == 0:
        return gap, 0.0
    freedom = int((va + vb) ** 2 / (va**2 / (a["n"] - 1) + vb**2 / (b["n"] - 1)))
    return gap, quantile(freedom) * math.sqrt(va + vb)


def size_text(count: float) -> str:
    """Bytes: 512 B, 1.50 MB."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = 0
    while count >= 1000 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.{2 if power else 0}f} {units[power]}"


def duration(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 10 min."""
    hours, rest = divmod(max(0, round(seconds)), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def percent(mean: float, std: float | None = None, n: int | None = None) -> str:
    """A share: 47.6 %, 47.6 ± 0.3 %, 47.6 ± 0.3 % (n=5)."""
    spread = "" if std is None else f" ± {100 * std:.1f}"
    return f"{100 * mean:.1f}{spread} %" + ("" if n is None else f" (n={n})")
