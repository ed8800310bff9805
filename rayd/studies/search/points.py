"""The points of a search by number, each with its run and its size: known before anything runs."""

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
"""Draws for one trial before the space is called empty: points that do not fit the budget are drawn again."""


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
    budget = run.budget.build()
    config = run.method.codec.fit(budget, spec)
    codec = config.build(spec, generator(run.seed, "codec"))
    ledger = Ledger.of({**codec.stored(), "step_size": Stored(torch.zeros(1), "step")})
    fill = ledger.bytes / budget.bytes if budget.bytes is not None else ledger.floats / budget.limit(spec)
    if fill > 1:
        raise refuse("budget", budget, f"at least {ledger.floats} floats, {ledger.bytes} bytes")
    plain = {name: one for name, one in to_dict(config).items() if isinstance(one, int) and not isinstance(one, bool)}
    return Size(plain, len(codec), ledger.floats, ledger.bytes, fill)


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
        """Trials are held against those of the same budget only."""
        given = {name: one for name, one in vars(self.run.budget.build()).items() if one is not None}
        return next(f"{one:g} {name}" for name, one in given.items())


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
class Plan:
    """The trials of a random or grid search, and the points that cannot be: with the reason."""

    trials: tuple[Trial, ...]
    refused: tuple[tuple[Point, str], ...]


def plan(base: Run, config: SearchConfig, spec: Spec) -> Plan:
    """All trials before any runs. Each point once: two dials may well resolve to the same set."""
    config.require()
    trials: list[Trial] = []
    refused: list[tuple[Point, str]] = []
    seen: set[str] = set()

    def take(point: Point) -> None:
        key = repr(sorted(point.items(), key=str))
        if key in seen:
            return
        seen.add(key)
        try:
            trials.append(make(base, config, spec, len(trials), point))
        except Refused as refusal:
            refused.append((point, str(refusal)))

    if config.searcher == "grid":
        for point in grid(config):
            if len(trials) < config.trials:
                take(point)
    else:
        for number in range(config.trials):
            for attempt in range(ATTEMPTS):
                if len(trials) == number:
                    take(drawn(config, base.seed, number, attempt))
            if len(trials) == number:
                break
    if not trials:
        reason = refused[0][1] if refused else "no point was drawn"
        raise refuse("search.space", f"{len(refused)} points", "at least one that fits the budget", reason)
    return Plan(tuple(trials), tuple(refused))
