"""Deciding about a step, apart from doing it: pure functions of what every worker knows after the all-reduce."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field, replace
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from rayd.errors import refuse
from rayd.schema import ADDED

PLATEAU_STEPS = 500
PLATEAU_FACTOR = 0.5
"""As in NCFM's release: `decay: plateau` multiplies the rate by this after so many steps without a lower loss ..."""
PLATEAU_LOWER = 1e-4
"""... by this share at least."""
SHORT = 10
"""An objective that is stuck for fewer steps ends no run."""
WARM, MEMORY = 10, 0.9
"""Steps before any gradient counts as out of proportion; the share of the typical norm that a step leaves of it."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens to a run that goes wrong. A step that is not finite is skipped; after `bad` of them in a row, or when
    the step size explodes, the last checkpoint is loaded; after `rollbacks` of those the run ends with a diagnosis. So it
    does after `patience` steps in a row from which nothing was learned, and at its last step if the objective was stuck
    for a quarter of the run by then: before, it may get free.
    A step of a gradient that is out of all proportion is skipped, too: an inner loop that diverges once would throw its
    step size where it diverges for good."""

    patience: int = 50
    """Steps in a row in which every item was skipped, or the gradient of the codec was below `stall` of its first."""
    stall: float = 1e-6
    """Share of the first gradient below which nothing is learned."""
    bad: int = 3
    """Steps in a row that are not finite."""
    rollbacks: int = 2
    """More of them end the run with a diagnosis."""
    max_step_size: float = 10.0
    """A learned step size above this has exploded."""
    spike: float | None = field(default=15.0, metadata=ADDED)
    """Times the typical gradient's norm above which a step is skipped; null: none, as in the published loops."""

    def __post_init__(self) -> None:
        if self.patience < 1 or self.bad < 1 or self.rollbacks < 0 or not self.max_step_size > 0 or self.stall < 0:
            raise refuse("guard", self, "patience, bad >= 1, rollbacks, stall >= 0, max_step_size > 0")
        if self.spike is not None and not self.spike > 1:
            raise refuse("guard.spike", self.spike, "a number above 1, or null")


class Tally(NamedTuple):
    """The first numbers of an all-reduce: sums over the items of a step."""

    value: float
    items: float
    """Items that count; the value is theirs."""
    skipped: float


TALLY = len(Tally._fields)


def bytes_reduced(numbers: int) -> int:
    """Bytes of one step's all-reduce, where `numbers` are learned."""
    return 8 * (TALLY + numbers)


@dataclass(frozen=True)
class Record:
    """What the loop remembers of its steps, the same on every worker; part of the state."""

    number: int = 0
    bad: int = 0
    """Steps in a row that were not finite."""
    rolled: int = 0
    skipped: int = 0
    idle: int = 0
    """Steps in a row from which nothing was learned."""
    first: float = 0.0
    """Norm of the codec's gradient at the first step that was taken; 0: none yet."""
    lowest: float = math.inf
    """Lowest loss so far ..."""
    lowest_at: int = 0
    """... and its step, or that of the last cut of the rate ..."""
    factor: float = 1.0
    """... which `decay: plateau` has reached."""
    typical: float = 0.0
    """Geometric running mean of the gradient's norm; 0: no step was taken yet."""
    stuck: int = 0
    """Steps in a row in which the objective was stuck."""

    def tensor(self) -> Tensor:
        return torch.tensor(astuple(self), dtype=torch.float64)

    @classmethod
    def of(cls, tensor: Tensor) -> Record:
        """Of a state; one of an earlier version has the first four numbers."""
        numbers = tensor.tolist()
        kinds = (int, int, int, int, int, float, float, int, float, float, int)
        return cls(*(kind(n) for kind, n in zip(kinds, numbers, strict=False)))


class Act(Enum):
    STEP = "step"
    SKIP = "skip"
    ROLL_BACK = "roll back"
    END = "end"


class Verdict(NamedTuple):
    act: Act
    why: str
    record: Record


def verdict(
    guard: GuardConfig, record: Record, tally: Tally, norm: float, codec_norm: float, last: bool, stuck: str = ""
) -> Verdict:
    """What to do with a step whose items and gradients are summed, and what is then remembered. `norm`: of the gradient
    of all players, `codec_norm`: of the codec's; `last`: whether it is the last of the run; `stuck`: why it brings
    nothing, though it has a gradient."""
    record = replace(record, number=record.number + 1)
    if tally.items == 0:
        record = replace(record, skipped=record.skipped + 1, idle=record.idle + 1)
        why = "every item was above the threshold"
        return Verdict(*_idle(guard, record, Act.SKIP, why, last), record)
    value = tally.value / tally.items
    if not (math.isfinite(norm) and math.isfinite(value)):
        return bad(guard, record, f"loss {value:.3g}, gradient norm {norm:.3g}")
    typical, most = record.typical or norm, (guard.spike or math.inf) * (record.typical or norm)
    record = replace(record, typical=typical**MEMORY * min(norm, most) ** (1 - MEMORY))
    if norm > most and record.number > WARM:
        record = replace(record, bad=0, skipped=record.skipped + 1)
        return Verdict(Act.SKIP, f"the gradient's norm is {norm:.3g}, where {typical:.3g} is typical", record)
    first = record.first or codec_norm
    small = codec_norm <= guard.stall * first
    record = replace(record, bad=0, first=first, idle=record.idle + 1 if small else 0)
    record = replace(record, stuck=record.stuck + 1 if stuck else 0)
    if value < record.lowest * (1 - PLATEAU_LOWER):
        record = replace(record, lowest=value, lowest_at=record.number)
    elif record.number - record.lowest_at > PLATEAU_STEPS:
        record = replace(record, lowest_at=record.number, factor=record.factor * PLATEAU_FACTOR)
    if small:
        why = f"the gradient of the codec is {codec_norm:.3g}, and was {first:.3g} at the first step"
        return Verdict(*_idle(guard, record, Act.STEP, why, last), record)
    if last and stuck and record.stuck >= max(SHORT, record.number / 4):
        return Verdict(Act.END, f"nothing was learned in the last {record.stuck} steps: {stuck}", record)
    return Verdict(Act.STEP, "", record)


def _idle(guard: GuardConfig, record: Record, act: Act, why: str, last: bool) -> tuple[Act, str]:
    """Whether a step from which nothing was learned ends the run."""
    if record.idle < guard.patience and not (last and record.idle == record.number):
        return act, why if act is Act.SKIP else ""
    return Act.END, f"nothing was learned in {record.idle} steps in a row: {why}"


def bad(guard: GuardConfig, record: Record, why: str, at_once: bool = False) -> Verdict:
    """A step that spoiled something, or would have."""
    record = replace(record, bad=record.bad + 1, skipped=record.skipped + 1)
    if record.bad < guard.bad and not at_once:
        return Verdict(Act.SKIP, why, record)
    record = replace(record, bad=0, rolled=record.rolled + 1)
    if record.rolled <= guard.rollbacks:
        return Verdict(Act.ROLL_BACK, why, record)
    return Verdict(Act.END, f"{why}, after {record.rolled - 1} rollbacks and {record.skipped} skipped steps", record)


def knobs(rate: float | None) -> str:
    """What to change after a run that ended here; `rate`: the step size of the last good state."""
    learned = "" if rate is None else f" The learned step size is {rate:.3g} in it."
    return (
        f"The last good state is kept.{learned} Knobs: method.objective.step_size and lr_step, first, last and "
        "grow_from (the window of start epochs), skip_above (larger or null); method.optimiser.lr (smaller); "
        "method.precision=fp32. Then submit again with another out."
    )
