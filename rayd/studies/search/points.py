"""The points of a search by number, each with its run and its size. They are known before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from rayd.config import Run
from rayd.data.images import Spec
from rayd.distill.budget import Ledger, Stored
from rayd.errors import Refused, refuse
from rayd.schema import to_dict
from rayd.seeds import generator
from rayd.studies.search.space import FAMILY, Point, SearchConfig, run_of

ATTEMPTS = 64
"""Draws for one trial: a point that does not fit the budget, or was drawn before, is drawn again."""


@dataclass(frozen=True)
class Size:
    """What a trial stores: known before it runs."""

    numbers: Mapping[str, Any]
    """The codec's own, resolved by `fit`."""
    images: int
    floats: int
    bytes: int
    fill: float
    """Share of the budget; at most 1."""


def size_of(run: Run, spec: Spec) -> Size:
    """The largest set of this run within its budget, the reserved step size counted; refused where none fits."""
    budget = run.budget
    config = run.method.codec.fit(budget, spec)
    numbers = {name: value for name, value in to_dict(config).items() if type(value) is int}
    filled = config.filled(budget, spec)
    if filled is not None:
        return Size(numbers, config.decoded(spec), config.floats(spec), filled, 1.0)
    codec = config.build(spec, generator(run.seed, "codec"))
    ledger = Ledger.of({**codec.stored(), "step_size": Stored(torch.zeros(1), "step")})
    fill = ledger.bytes / budget.bytes if budget.bytes is not None else ledger.floats / budget.limit(spec)
    if fill > 1:
        raise refuse("budget", budget, f"at least {ledger.floats} floats, {ledger.bytes} bytes")
    return Size(numbers, len(codec), ledger.floats, ledger.bytes, fill)


@dataclass(frozen=True)
class Trial:
    """A numbered point, its run and its size."""

    number: int
    point: Point
    run: Run
    size: Size

    @property
    def name(self) -> str:
        return f"{self.number:05d}"

    @property
    def budget(self) -> str:
        """Trials are compared with those of the same budget only."""
        return next(f"{size:g} {name}" for name, size in vars(self.run.budget).items() if size is not None)


def make(base: Run, config: SearchConfig, spec: Spec, number: int, point: Point) -> Trial:
    run = run_of(base, config, point)
    return Trial(number, point, replace(run, out=base.at(f"search/trials/{number:05d}")), size_of(run, spec))


def drawn(config: SearchConfig, seed: int, number: int, attempt: int) -> Point:
    """A random point, by its number."""
    rng = generator(seed, "search", number, attempt)
    family = config.names[int(torch.randint(len(config.names), (), generator=rng))]
    point: Point = {FAMILY: family} if family else {}
    for path, dial in config.dials(family).items():
        point[path] = dial.at(float(torch.rand((), generator=rng, dtype=torch.float64)))
    return point


def grid(config: SearchConfig) -> Iterator[Point]:
    for family in config.names:
        dials = config.dials(family)
        for values in itertools.product(*(dial.values(f"search.space.{path}") for path, dial in dials.items())):
            yield ({FAMILY: family} if family else {}) | dict(zip(dials, values, strict=True))


@dataclass(frozen=True)
class TrialPlan:
    """The trials of a random or grid search, and the refused points, each with its reason."""

    trials: tuple[Trial, ...]
    refused: tuple[tuple[Point, str], ...]


def plan(base: Run, config: SearchConfig, spec: Spec) -> TrialPlan:
    """All trials before any runs. Each point once: two dials may well resolve to the same set."""
    config.require()
    trials: list[Trial] = []
    refused: list[tuple[Point, str]] = []
    seen: set[str] = set()

    def take(point: Point) -> bool:
        """Whether the point became a trial."""
        key = repr(sorted(point.items(), key=str))
        if key in seen:
            return False
        seen.add(key)
        try:
            trials.append(make(base, config, spec, len(trials), point))
        except Refused as refusal:
            refused.append((point, str(refusal)))
            return False
        return True

    if config.searcher == "grid":
        for point in grid(config):
            if len(trials) < config.trials:
                take(point)
    else:
        for number in range(config.trials):
            if not any(take(drawn(config, base.seed, number, attempt)) for attempt in range(ATTEMPTS)):
                break
    if not trials:
        reason = refused[0][1] if refused else "no point was drawn"
        raise refuse("search.space", f"{len(refused)} points", "at least one that fits the budget", reason)
    return TrialPlan(tuple(trials), tuple(refused))
