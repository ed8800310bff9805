"""How the time is divided, from what was measured. Pure functions of seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rayd.evaluate.recipe import FEWEST
from rayd.run.recorder import VALIDATION_NETS, VALIDATION_SHARE

FEWEST_STEPS = 50
"""Of a recipe that is shortened to fit."""
PLANNED = 3
"""Controls that a recipe is shortened for; more are scored where there is time."""
VALIDATING = 0.005
"""Share of the time that one validation may take."""
SLACK = 0.02
"""Share of the time that nobody plans with: pages, and what takes longer than before."""
VALIDATIONS = 2
"""A stretch of a trial between two validations takes as long as so many of them, at least."""
COMPRESSED = 8
"""Pictures as files of so many times fewer bytes: a guess, for the pace."""
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
    control: float
    """... on as many real images as files of its bytes hold ..."""
    real: float
    """... and on whole batches of them."""

    @classmethod
    def of(cls, expert: float, measured: Mapping[str, Mapping[str, float]], raw: float, batch: int) -> Pace:
        """From the probe; `raw`: 8-bit images of the budget's bytes, `batch`: real images that a batch has."""
        distill, score = measured["distill"], measured["evaluate"]
        real, start = score["real_s"], distill["start_s"] + distill["first_s"]
        control = real * min(1.0, COMPRESSED * raw / batch)
        return cls(expert, start, distill["step_s"], score["net_s"], control, real)

    def recipe(self, steps: float) -> Pace:
        """The same where a recipe has `steps` times as many steps."""
        networks = (self.network * steps, self.control * steps, self.real * steps)
        return Pace(self.expert, self.start, self.step, *networks)

    def table(self, controls: int = 1) -> float:
        """The fewest networks of the set, of its 8-bit view and of so many controls, whose features take one more."""
        return FEWEST * (2 * self.network + controls * self.control) + self.real


def recipe_share(pace: Pace, scoring: float, validating: float) -> float:
    """Which share of the recipe's steps leaves time for a table, and makes validations short enough; at most 1."""
    validation = VALIDATION_NETS * max(pace.network, pace.control) / VALIDATION_SHARE
    return min(1.0, scoring / pace.table(PLANNED), validating / validation)


def least(pace: Pace) -> float:
    """Seconds below which nothing comes out: one unit of experts, a start, two stretches of a trial, a table."""
    validation = VALIDATION_NETS * pace.network / VALIDATION_SHARE
    stretch = 2 * pace.step + validation
    return (pace.expert + pace.start + STRETCHES * stretch + pace.table()) / (1 - SLACK)


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
