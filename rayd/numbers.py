"""Means, deviations and 95 % intervals, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

UNITS = ("B", "kB", "MB", "GB", "TB")
ANGLES = np.linspace(0, math.pi / 2, 2**14 + 1)


def quantile(freedom: float, error: float = 0.05) -> float:
    """Student's t, two-sided: |T| is above it in a share `error` of all cases.

    With T = sqrt(freedom) tan(angle) the density of the angle is a power of its cosine, integrated here as it stands.
    """
    n = max(freedom, 1)
    density = np.cos(ANGLES).clip(0) ** (n - 1)
    below = np.concatenate([[0], (density[1:] + density[:-1]).cumsum()])
    return math.sqrt(n) * math.tan(np.interp((1 - error) * below[-1], below, ANGLES))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """mean, std (n - 1), n, and the 95 % t-interval of the mean: mean +- ci95."""
    n, centre = len(values), mean(values)
    std = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1)) if n > 1 else 0.0
    ci95 = quantile(n - 1) * std / math.sqrt(n) if n > 1 else 0.0
    return {"mean": centre, "std": std, "n": n, "ci95": ci95, "values": list(values)}


def difference(a: Mapping[str, Any], b: Mapping[str, Any], looks: int = 1) -> tuple[float, float]:
    """Mean of a less mean of b, and half its 95 % interval (Welch); infinite where a deviation is unknown.

    `looks`: how often it may be looked at before one stops. The error of 5 % is shared among them (Bonferroni), so that
    all looks together err no more often.
    """
    gap = a["mean"] - b["mean"]
    if a["n"] < 2 or b["n"] < 2:
        return gap, math.inf
    va, vb = (row["std"] ** 2 / row["n"] for row in (a, b))
    if va + vb == 0:
        return gap, 0.0
    freedom = (va + vb) ** 2 / (va**2 / (a["n"] - 1) + vb**2 / (b["n"] - 1))
    return gap, quantile(freedom, 0.05 / looks) * math.sqrt(va + vb)


def size_text(count: float) -> str:
    """Bytes: 512 B, 1.50 MB."""
    power = 0
    while count >= 1000 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.{2 if power else 0}f} {UNITS[power]}"


def size_of_text(text: str) -> int | None:
    """Bytes that `512 B`, `200kB` or `1.5 MB` says, in whole ones; None where it says none."""
    number, unit = text.rstrip("kMGTB "), text.lstrip("0123456789. ")
    power = UNITS.index(unit) if unit in UNITS else None
    if power is None or not number.replace(".", "", 1).isdigit():
        return None
    return round(float(number) * float(1000**power))


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
