"""Published accuracies, as configs/published.csv keeps them: a figure, its source, and the regime that it belongs to.

A regime says what a figure stands on (labels, storage, which checkpoint): figures of two regimes are not comparable.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass

from jobs.compose import CONFIGS, Published


@dataclass(frozen=True)
class Row:
    """Test accuracy in per cent; `std` is empty where the source gives none."""

    method: str
    data: str
    ipc: float
    mean: str
    std: str
    source: str
    regime: str

    def __str__(self) -> str:
        figure = f"{self.mean} ± {self.std}" if self.std else self.mean
        return f"{figure} ({self.source}; {self.regime})"


def table() -> list[Row]:
    with (CONFIGS / "published.csv").open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        next(lines)
        return [Row(method, data, float(ipc), *rest) for method, data, ipc, *rest in lines]


def rows(key: Published | None, data: str) -> list[Row]:
    """The figures of a method on a dataset at a size and under a regime, if one is named."""
    if key is None:
        return []
    rows = [row for row in table() if (row.method, row.data, row.ipc) == (key.method, data, key.ipc)]
    return [row for row in rows if key.regime in (None, row.regime)]
