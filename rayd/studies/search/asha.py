"""Which trials continue: asynchronous successive halving (Li et al., MLSys 2020, arXiv 1810.05934), as a record of rungs.

A trial that reaches a rung is compared with those that reached it before, and stops unless it is in the best
1 / `reduction` of them. The record is rebuilt from stored curves, so a continued search decides as if never interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Curve = Sequence[tuple[int, float]]
"""(step, accuracy), ascending."""


def percentile(values: list[float], share: float) -> float:
    """Linear between the ranks."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclass
class Rungs:
    """The rungs of the trials of one budget: step -> trial -> its value there."""

    grace: int
    reduction: float
    last: int
    reached: dict[int, dict[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        step = float(self.grace)
        while step < self.last:
            self.reached[round(step)] = {}
            step *= self.reduction

    def survives(self, trial: int, step: int, value: float) -> bool:
        """Record what `trial` reached and say whether it continues. Only the first visit to a rung counts."""
        for rung in sorted(self.reached, reverse=True):
            values = self.reached[rung]
            if step < rung:
                continue
            if trial in values:
                return True
            cutoff = percentile(list(values.values()), 1 - 1 / self.reduction) if values else value
            values[trial] = value
            return value >= cutoff
        return True

    def replay(self, trial: int, curve: Curve) -> None:
        """Record the curve of an earlier trial."""
        for step, value in curve:
            self.survives(trial, step, value)


@dataclass
class Halving:
    """Rungs by budget. Where `on` is false no trial stops."""

    grace: int
    reduction: float
    last: int
    on: bool = True
    by_budget: dict[str, Rungs] = field(default_factory=dict)

    def rungs(self, budget: str) -> Rungs:
        return self.by_budget.setdefault(budget, Rungs(self.grace, self.reduction, self.last))

    def survives(self, budget: str, trial: int, step: int, value: float) -> bool:
        return self.rungs(budget).survives(trial, step, value) or not self.on

    def replay(self, budget: str, trial: int, curve: Curve) -> None:
        self.rungs(budget).replay(trial, curve)
