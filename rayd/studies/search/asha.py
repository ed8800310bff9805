"""Who goes on: asynchronous successive halving (Li et al., MLSys 2020, arXiv 1810.05934), as a record of rungs.

A trial that reaches a rung is compared with those that reached it before, and stops where it is not among the best one
in `reduction`. The record is filled again from stored curves, so an interrupted search goes on deciding where it stood.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Curve = Iterable[tuple[int, float]]


def percentile(values: list[float], share: float) -> float:
    """Linear between the ranks."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclass
class Rungs:
    """The rungs of trials that are comparable (one budget): step -> trial -> what it reached there."""

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
        """Record what `trial` reached and say whether it goes on; a rung is climbed once, by its first visit."""
        for rung in sorted(self.reached, reverse=True):
            there = self.reached[rung]
            if step < rung:
                continue
            if trial in there:
                return True
            cutoff = percentile(list(there.values()), 1 - 1 / self.reduction) if there else value
            there[trial] = value
            return value >= cutoff
        return True

    def replay(self, trial: int, curve: Curve) -> None:
        """What a trial reached in an earlier life of the search."""
        for step, value in curve:
            self.survives(trial, step, value)


@dataclass
class Halving:
    """Rungs by budget; `on` false: nobody stops."""

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
