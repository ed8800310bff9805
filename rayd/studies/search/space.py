"""What may vary: dials, families of methods, and what trials share.

A point is a mapping from paths of the run (`method.codec.rank`, `budget.ipc`) to values, with `family` where there are
several. Random points come from (seed, number, attempt), so trial 7 is the same whoever asks for it, and a longer
search begins with the trials of a shorter one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rayd.config import Run
from rayd.errors import refuse
from rayd.schema import parse, positive, read, to_dict

Point = dict[str, Any]
"""Path -> value, with the family's name where there are several."""
FAMILY = "family"
SHORT = {
    "rank": "method.codec.rank", "sharing": "method.codec.sharing", "storage": "method.codec.storage",
    "ipc": "budget.ipc", "bytes": "budget.bytes",
}  # fmt: skip
"""Names one may use instead of the whole path."""
ROOMS = ("method.", "budget.")
"""The paths that may vary: everything else (data, network, experts, recipe) is what makes trials comparable."""


@dataclass(frozen=True, kw_only=True)
class Dial:
    """One axis: choices, or a range from low to high."""

    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    """The range's scale: each factor of ten as likely as the next."""
    whole: bool = False
    """Whole numbers only."""
    grid: int = 0
    """Values that a grid takes from a range, ends included."""

    def __post_init__(self) -> None:
        if bool(self.choices) == (self.low is not None and self.high is not None):
            raise refuse("search.space", self, "a list of choices, or a mapping with low and high")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise refuse("search.space.low", self.low, f"below high={self.high}")
        if self.log and (self.low or 0) <= 0:
            raise refuse("search.space.low", self.low, "above 0 on a log scale")

    @classmethod
    def of(cls, plain: Any, where: str) -> Dial:
        """A list holds choices, a mapping a range; anything else is the only choice."""
        if isinstance(plain, Mapping):
            return read(cls, plain, where)
        return cls(choices=tuple(plain) if isinstance(plain, list | tuple) else (plain,))

    def at(self, share: float) -> Any:
        """The value at a share of the dial, from 0 to 1."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        assert self.low is not None and self.high is not None
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        if self.whole:
            return min(max(round(value), math.ceil(self.low)), math.floor(self.high))
        return float(f"{value:.6g}")

    def values(self, where: str) -> tuple[Any, ...]:
        """What a grid takes."""
        if self.choices:
            return self.choices
        if self.grid < 2:
            raise refuse(f"{where}.grid", self.grid, "at least 2 values of a range under searcher=grid")
        return tuple(dict.fromkeys(self.at(i / (self.grid - 1)) for i in range(self.grid)))


@dataclass(frozen=True, kw_only=True)
class FamilyConfig:
    """A method of the search with dials of its own."""

    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Path -> value that makes it this family: `method.codec: {name: nsd}`."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """Dials that only this family has, or has with other values."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What is searched, how long each trial is, who proposes and who stops."""

    space: Mapping[str, Any] = field(default_factory=dict)
    """Path -> [choices] or {low, high, log, whole, grid}; rank, sharing, storage, ipc, bytes are short for their paths."""
    families: Mapping[str, FamilyConfig] = field(default_factory=dict)
    """Name -> {fixed, space}; none: the run's own method."""
    searcher: Literal["random", "grid", "tpe"] = "random"
    """Who proposes points; tpe is Optuna's, under scale=laptop or cluster."""
    scheduler: Literal["asha", "none"] = "asha"
    """Who stops a trial early: asha compares it with the others at each rung."""
    trials: int = 8
    """At most: a small space may hold fewer points."""
    steps: int = 100
    """Of a whole trial."""
    every: int = 25
    """Steps between two validations, which are checkpoints too."""
    grace: int = 25
    """Steps that every trial gets."""
    reduction: float = 2.0
    """One in so many goes on at each rung."""
    seeds: int = 1
    """Distillations of one trial, side by side; its accuracy is their mean."""
    concurrent: int = 0
    """Trials at once; 0: as many as the resources hold."""
    winner: int = 2
    """Fresh seeds that the winner is distilled again with, at the method's own steps, and scored on test; 0: none."""

    def __post_init__(self) -> None:
        for name in ("trials", "steps", "every", "grace", "seeds"):
            positive(f"search.{name}", getattr(self, name))
        if self.reduction <= 1:
            raise refuse("search.reduction", self.reduction, "above 1: one in so many goes on")
        if self.every > self.steps or self.grace > self.steps:
            raise refuse("search.steps", self.steps, f"at least every={self.every} and grace={self.grace}")
        for name in ("concurrent", "winner"):
            if getattr(self, name) < 0:
                raise refuse(f"search.{name}", getattr(self, name), "zero or more")
        for family in self.names:
            self.dials(family)

    @property
    def names(self) -> tuple[str, ...]:
        """Families; one without a name where none is given."""
        return tuple(self.families) or ("",)

    def dials(self, family: str) -> dict[str, Dial]:
        """Path -> dial, those of the family last."""
        space = {**self.space, **(self.families[family].space if family else {})}
        dials = {SHORT.get(path, path): Dial.of(plain, f"search.space.{path}") for path, plain in space.items()}
        for path in dials:
            if not path.startswith(ROOMS):
                raise refuse("search.space", path, f"a path under method. or budget., or {' | '.join(SHORT)}",
                             "data, network, experts and recipe stay fixed: they make trials comparable")  # fmt: skip
        return dials

    def require(self) -> None:
        """Refuse a search of nothing."""
        if not all(self.dials(family) for family in self.names):
            raise refuse("search.space", "{}", "at least one dial", "'search.space={rank: [1, 2, 4]}'")

    def identity(self) -> dict[str, Any]:
        """What makes two searches one: all but how many trials, how many at once and what follows."""
        plain: dict[str, Any] = to_dict(self)
        return {name: value for name, value in plain.items() if name not in ("trials", "concurrent", "winner")}

    @property
    def milestones(self) -> tuple[int, ...]:
        """The steps at which a trial is validated."""
        return (*range(self.every, self.steps, self.every), self.steps)


@dataclass(frozen=True)
class SearchKeys:
    """The keys that jobs.search takes beyond those of a run."""

    search: SearchConfig = field(default_factory=SearchConfig)


def short(path: str) -> str:
    """A dial's name in a table."""
    return path.rsplit(".", 1)[-1]


def placed(plain: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A plain run with one value at a path; a budget replaces the others, since only one may be given."""
    if path.startswith("budget."):
        return {**plain, "budget": {path.removeprefix("budget."): value}}
    key, _, rest = path.partition(".")
    if not rest:
        return {**plain, key: value}
    inner = plain.get(key)
    if not isinstance(inner, Mapping):
        raise refuse(path, value, "a path that the run has", f"{key} holds {inner!s}")
    return {**plain, key: placed(inner, rest, value)}


def run_of(base: Run, config: SearchConfig, point: Point) -> Run:
    """The run of a point: the base, the family's own values, the dials; refused as any run is."""
    plain: dict[str, Any] = to_dict(base)
    family = point.get(FAMILY, "")
    fixed = config.families[family].fixed if family else {}
    for path, value in {**fixed, **point}.items():
        if path != FAMILY:
            plain = placed(plain, SHORT.get(path, path), value)
    steps = {"steps": config.steps, "validate": config.every, "checkpoint": config.every, "select": "last"}
    return parse(Run, {**plain, "method": {**plain["method"], **steps}, "buffer": base.experts_at})


# ---- what trials share -----------------------------------------------------------------------------------------------


def corners(base: Run, config: SearchConfig) -> Iterator[Run]:
    """One run for every combination of extreme values of the objective's dials: what may need the longest experts."""
    for family in config.names:
        ends: dict[str, tuple[Any, ...]] = {}
        for path, dial in config.dials(family).items():
            if path.startswith("method.objective"):
                ends[path] = dial.choices or (dial.at(0.0), dial.at(1.0))
        for values in itertools.product(*ends.values()):
            yield run_of(base, config, ({FAMILY: family} if family else {}) | dict(zip(ends, values, strict=True)))


def experts_for(base: Run, config: SearchConfig) -> Run | None:
    """The corner whose experts serve every trial: the longest window; none where no trial asks for experts."""
    reading = [run for run in corners(base, config) if run.method.reads_experts]
    return max(reading, key=lambda run: getattr(run.method.objective, "last_epoch", run.expert.epochs), default=None)
