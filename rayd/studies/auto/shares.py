"""How the time is divided, from what was measured. Pure functions of seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rayd.evaluate.recipe import FEWEST

FEWEST_STEPS = 50
"""Of a recipe that is shortened to fit."""
SLACK = 0.02
"""Share of the time that nobody plans with: pages, and what takes longer than before."""
VALIDATIONS = 2
"""A stretch of a trial between two validations takes as long as so many of them, at least."""
STRETCHES = 2
"""Of a trial's first leg, at least."""


@dataclass(frozen=True)
class Pace:
    """Seconds on this machine, as the plan's probe measures them."""

    expert: float
    """One unit of experts; 0 where no method asks for any."""
    start: float
    """Of a distillation, before its first step."""
    step: float
    network: float
    """Trained and tested on the set, under the whole recipe ..."""
    real: float
    """... and on real images."""

    def recipe(self, steps: float) -> Pace:
        """The same where a recipe has `steps` times as many steps."""
        return Pace(self.expert, self.start, self.step, self.network * steps, self.real * steps)

    @property
    def table(self) -> float:
        """The fewest networks of the set, of its 8-bit view and of one control, whose features take a network too."""
        return FEWEST * (2 * self.network + self.real) + self.real


def recipe_share(pace: Pace, seconds: float, controls: int) -> float:
    """Which share of the recipe's steps leaves time for the fewest networks of every row; at most 1."""
    whole = pace.table + FEWEST * (controls - 1) * pace.real
    return min(1.0, seconds / whole)


def least(pace: Pace, validation: float) -> float:
    """Seconds below which nothing comes out: one unit of experts, a start, two stretches of a trial, a table."""
    stretch = 2 * pace.step + validation
    return (pace.expert + pace.start + STRETCHES * stretch + pace.table) / (1 - SLACK)


@dataclass(frozen=True)
class Pilot:
    """What two steps of a method took, or why it takes no part."""

    start: float = 0.0
    step: float = 0.0
    validation: float = 0.0
    accuracy: float = 0.0
    """On the validation split, after the two steps."""
    refused: str = ""

    def stretch(self, seconds: float) -> int:
        """Steps between two validations of a trial whose first leg has so many seconds."""
        wanted = max(VALIDATIONS * self.validation, (seconds - self.start) / STRETCHES - self.validation)
        return max(1, round(wanted / max(self.step, 1e-6)))

    @property
    def leg(self) -> float:
        """Seconds of the shortest leg that says something."""
        return self.start + STRETCHES * (max(2 * self.step, VALIDATIONS * self.validation) + self.validation)


def rungs(seconds: float, pilots: Mapping[str, Pilot], slots: int, most: int) -> tuple[int, ...]:
    """How many trials each rung has: halves, the last one alone, each rung as long as the next. As many as give each its
    leg; `slots`: trials that run at once."""
    leg = sorted(pilot.leg for pilot in pilots.values())[len(pilots) // 2]
    sizes: tuple[int, ...] = (1,)
    while True:
        longer = (2 * sizes[0], *sizes)
        waves = -(-longer[0] // slots)
        if longer[0] > most or seconds / len(longer) / waves < leg:
            return sizes
        sizes = longer
