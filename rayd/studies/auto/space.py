"""The keys of the verb, the methods that are tried, and the points of the search.

A family is a method of configs/method (or of a folder of one's own) that fits the run's network, experts and budget. Its
dials are those of the space that its codec accepts: each choice is asked of the codec's own `fit`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rayd.config import Run
from rayd.data.images import Spec
from rayd.errors import Refused, refuse
from rayd.schema import parse, to_dict
from rayd.seeds import generator
from rayd.studies.search.points import ATTEMPTS, Trial, size_of
from rayd.studies.search.space import FAMILY, SHORT, Dial, Point, placed

RATE = "method.optimiser.lr"
STORAGE = "method.codec.storage"
FINER = ("fp32", "fp16", "int8", "int6", "int4")
"""Storages that a method starts with: the first whose smallest set is within the budget."""


@dataclass(frozen=True, kw_only=True)
class AutoConfig:
    """How the time is used, and what is tried."""

    families: tuple[str, ...] = ()
    """Methods that are tried, in this order; empty: one for each codec, then the others, as many as the time holds."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """Path -> choices, as in search.space; a method takes those of its dials that its codec accepts."""
    rate: float = 3.0
    """The learning rate is drawn from the method's own divided by this to it times this; 1: it stays."""
    trials: int = 32
    """At most."""
    experts: float = 0.25
    """Share of the time for experts, at most."""
    pilots: float = 0.2
    """Share of what is then left for two steps of each method, which measure its pace."""
    scoring: float = 0.2
    """Share of the time for the test."""
    controls: tuple[str, ...] = ("herding@jpeg", "start", "random@jpeg", "herding@best", "random@raw", "full")
    """Rows beside the set, the most telling first: as many as the time holds."""

    def __post_init__(self) -> None:
        for name in ("experts", "pilots", "scoring"):
            if not 0 < getattr(self, name) < 0.6:
                raise refuse(f"auto.{name}", getattr(self, name), "a share of the time, above 0 and below 0.6")
        if self.rate < 1:
            raise refuse("auto.rate", self.rate, "a factor from 1")
        if self.trials < 1:
            raise refuse("auto.trials", self.trials, "a whole number from 1")


@dataclass(frozen=True)
class AutoKeys:
    """The keys that jobs.auto takes beyond those of a run."""

    hours: float = 1.0
    """Time for everything, over all starts of the command together."""
    auto: AutoConfig = field(default_factory=AutoConfig)

    def __post_init__(self) -> None:
        if not self.hours > 0:
            raise refuse("hours", self.hours, "a number above zero")


@dataclass(frozen=True)
class Family:
    """A method as it is tried first, and its dials."""

    name: str
    run: Run
    point: Point
    """What had to be changed for the budget to hold it: its storage, or nothing."""
    dials: Mapping[str, Dial]


def at(run: Run, point: Mapping[str, Any]) -> Run:
    """The run with these values."""
    plain: dict[str, Any] = to_dict(run)
    for path, value in point.items():
        plain = placed(plain, SHORT.get(path, path), value)
    return parse(Run, plain)


def holds(run: Run, spec: Spec) -> bool:
    try:
        run.method.codec.fit(run.budget, spec)
    except Refused:
        return False
    return True


def unfit(run: Run, base: Run) -> str:
    """Why a method cannot be tried beside the others; empty where it can."""
    if run.net != base.net:
        return f"needs another network than {base.net.name} with norm={base.net.norm}"
    if run.method.reads_experts and run.expert != base.expert:
        return "needs other experts"
    if run.recipe != base.recipe:
        return "needs another recipe"
    if run.method.optimiser.decay == "cosine":
        return "its rate falls over a number of steps that is to be known beforehand"
    return ""


def family_of(name: str, run: Run, config: AutoConfig, spec: Spec) -> Family:
    """The method at the first storage that fits the budget, and its dials; refused where none does."""
    first: Point | None = None
    for storage in (None, *FINER):
        point = {} if storage is None else {STORAGE: storage}
        if accepted(run, point, spec):
            first = point
            break
    if first is None:
        size_of(run, spec)  # says why
        raise refuse("budget", run.budget, f"one that holds a set of {name}")
    dials: dict[str, Dial] = {}
    for path, plain in config.space.items():
        whole = SHORT.get(path, path)
        if not whole.startswith("method."):
            raise refuse("auto.space", path, "a path under method.", "data, network and budget are the same for all")
        choices = [one for one in Dial.of(plain, f"auto.space.{path}").values(f"auto.space.{path}")
                   if accepted(run, {**first, whole: one}, spec)]  # fmt: skip
        if len(choices) > 1:
            dials[whole] = Dial(choices=tuple(choices))
    rate = run.method.optimiser.lr
    if config.rate > 1:
        dials[RATE] = Dial(low=rate / config.rate, high=rate * config.rate, log=True)
    return Family(name, run, first, dials)


def accepted(run: Run, point: Point, spec: Spec) -> bool:
    try:
        return holds(at(run, point), spec)
    except Refused:
        return False


def ranked(sentences: Mapping[str, Sequence[str]]) -> list[str]:
    """Methods in the order in which they are tried: first one for each codec, then the others. The one for a codec is
    called as its codec or its objective is, if there is one."""
    order = sorted(sentences, key=lambda name: (name not in sentences[name], name))
    firsts = {sentences[name][0]: name for name in reversed(order)}
    return sorted(order, key=lambda name: firsts[sentences[name][0]] != name)


def points(families: Sequence[Family], count: int, seed: int, spec: Spec) -> Iterator[Trial]:
    """The first half: the methods as they are, best first; then random points of these methods in turn. No two trials of a
    method store the same numbers at nearly the same rate."""
    seen: set[str] = set()
    number, firsts = 0, families[: max(1, -(-count // 2))]

    def trial(family: Family, point: Point) -> Trial | None:
        try:
            run = at(family.run, point)
            size = size_of(run, spec)
        except Refused:
            return None
        ratio = run.method.optimiser.lr / family.run.method.optimiser.lr
        key = repr((family.name, run.method.codec.storage, size, round(math.log2(ratio))))
        if key in seen:
            return None
        seen.add(key)
        return Trial(number, {FAMILY: family.name, **point}, run, size)

    for family in firsts:
        if one := trial(family, dict(family.point)):
            yield one
            number += 1
    for attempt in range(count * ATTEMPTS):
        if number >= count:
            return
        family = firsts[number % len(firsts)]
        rng = generator(seed, "auto", number, attempt)
        shares = {path: float(torch.rand((), generator=rng, dtype=torch.float64)) for path in family.dials}
        if one := trial(family, {path: family.dials[path].at(share) for path, share in shares.items()}):
            yield one
            number += 1


def trial_of(families: Mapping[str, Family], number: int, point: Point, spec: Spec) -> Trial:
    """A trial by its point."""
    run = at(families[point[FAMILY]].run, {path: value for path, value in point.items() if path != FAMILY})
    return Trial(number, dict(point), run, size_of(run, spec))
