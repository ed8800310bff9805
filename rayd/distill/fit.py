"""A codec's options, and how they are fitted to a budget: two dials, and the largest of what they leave open.

`fit` is arithmetic on the shapes that a configuration would store, so a search may ask it thousands of times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeVar

import torch

from rayd.data.images import Spec
from rayd.distill.budget import Budget, Shapes
from rayd.errors import Refused, refuse
from rayd.schema import ADDED

T = TypeVar("T", bound="CodecOptions")
GROUP = 64
"""Numbers that share a scale under `scales: group`."""


@dataclass(frozen=True, kw_only=True)
class CodecOptions:
    """What every codec's Config offers. Numbers that are None are resolved by `fit`; the others are kept."""

    rank: int | None = None
    """How much detail an image keeps; what it means is the family's. None: the family's rule for the budget."""
    sharing: int | None = None
    """How much is shared between images; what it means is the family's. None: the family's rule."""
    labels: Literal["hard", "soft"] = "hard"
    """soft: learned logits, one row for each unit, counted by the ledger."""
    storage: Literal["fp32", "fp16", "bf16", "int8", "int6", "int4", "int3", "int2"] = "fp32"
    """The type written to the artifact; scores are of what is stored. What images share (kernels, mappers, hallucinators)
    and learned labels take eight bits at least."""
    scales: Literal["row", "column", "group", "tensor"] | None = field(default=None, metadata=ADDED)
    """Whose numbers share a scale, of whole numbers: a unit's, those at one place of the last two axes (a frequency, a
    pixel), GROUP in turn, all of a tensor; null: columns below eight bits, rows from there on."""
    coder: Literal["none", "zlib"] = field(default="none", metadata=ADDED)
    """zlib: levels are coded where that saves a twentieth of them; the budget is kept before the coder."""
    start: Literal["real", "confident", "noise"] = "real"
    """Real images by plan, those first that an expert gets right, or noise."""
    lr_labels: float | None = None
    """Rate of SGD with momentum 0.9 for soft labels, as DATM publishes it; None: the run's optimiser and rate."""

    def __post_init__(self) -> None:
        for name in self.numbers():
            number = getattr(self, name)
            if number is not None and number < 1:
                raise refuse(f"codec.{name}", number, "a whole number from 1, or null for the family's rule")
        if self.lr_labels is not None and not self.lr_labels > 0:
            raise refuse("codec.lr_labels", self.lr_labels, "above 0, or null for the run's own rate")

    @classmethod
    def numbers(cls) -> tuple[str, ...]:
        """Fields that count something: the dials, and what `fit` resolves."""
        return tuple(dict.fromkeys(("rank", "sharing", *cls.resolved())))

    @classmethod
    def resolved(cls) -> tuple[str, ...]:
        """Fields that `fit` fills in."""
        return ()

    @property
    def learns_labels(self) -> bool:
        return self.labels == "soft"

    @property
    def needs(self) -> frozenset[str]:
        """A teacher, where one says how labels or images start."""
        return frozenset({"teacher"} if self.learns_labels or self.start == "confident" else ())

    def stored_as(self, name: str, role: str) -> str:
        """The storage of a tensor."""
        if not self.storage.startswith("int"):
            return self.storage
        kind = self.storage if self.is_many(name, role) else "int8"
        scales = self.scales or self.usual_scales(kind)
        parts = (kind, f"group{GROUP}" if scales == "group" else scales, *(["zlib"] if self.coder == "zlib" else []))
        return "int8" if parts == ("int8", "row") else ".".join(parts)

    @classmethod
    def usual_scales(cls, kind: str) -> str:
        """Who shares a scale where the configuration does not say."""
        return "row" if kind == "int8" else "column"

    @classmethod
    def is_many(cls, name: str, role: str) -> bool:
        """Whether a tensor holds what there is one of for each image: most of the bytes, which may be coarse."""
        return role in ("pixels", "factors")

    # What a family says of itself, once resolved.

    def shapes(self, spec: Spec) -> Shapes:
        """The stored tensors: name -> (shape, role), labels excepted."""
        raise NotImplementedError

    def slots(self, spec: Spec) -> int:
        """Rows of soft labels."""
        raise NotImplementedError

    def decoded(self, spec: Spec) -> int:
        """Images that come out."""
        raise NotImplementedError

    def resolve(self, budget: Budget, spec: Spec) -> Self:
        """The largest configuration that fits, if any does."""
        raise NotImplementedError

    def build(self, spec: Spec, rng: torch.Generator) -> Any:
        raise NotImplementedError

    # What follows from it.

    def all_shapes(self, spec: Spec) -> Shapes:
        soft = {"labels": ((self.slots(spec), spec.classes), "labels")} if self.learns_labels else {}
        return {**self.shapes(spec), **soft}

    def fixed_shapes(self, spec: Spec) -> Shapes:
        """Of the stored tensors whose shapes the configuration alone decides."""
        return self.all_shapes(spec)

    def filled(self, budget: Budget, spec: Spec) -> int | None:
        """Bytes of the file where its size follows the budget and not the shapes."""
        return None

    def floats(self, spec: Spec) -> int:
        """Numbers in the file, the step size and the scales of int8 included."""
        unit = Budget(floats=1)
        return round(unit.used(self.all_shapes(spec), spec, self.stored_as))

    def within(self, budget: Budget, spec: Spec) -> bool:
        return budget.holds(self.all_shapes(spec), spec, self.stored_as)

    def fill(self, budget: Budget, spec: Spec) -> float:
        return budget.used(self.all_shapes(spec), spec, self.stored_as)

    def fit(self, budget: Budget, spec: Spec) -> Self:
        """The largest configuration within the budget: pure arithmetic."""
        fitted = (
            self if all(getattr(self, name) is not None for name in self.resolved()) else self.resolve(budget, spec)
        )
        if not fitted.within(budget, spec):
            raise too_small(fitted, budget, spec)
        return fitted

    def describe(self, budget: Budget, spec: Spec) -> str:
        """One line for people: the numbers, the decoded images and the fill."""
        numbers = ", ".join(f"{name} {v}" for name in self.numbers() if (v := getattr(self, name)) is not None)
        return (
            f"{numbers}: {self.floats(spec):,} floats, {self.fill(budget, spec):.1%} of {budget}, "
            f"{self.decoded(spec) / spec.classes:g} images a class"
        )

    def need(self, names: Sequence[str]) -> None:
        """Refuse to build what was never fitted."""
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise refuse(f"codec.{missing[0]}", None, "a number", "call fit(budget, spec) first")


def largest(fits: Callable[[int], bool], least: int = 1) -> int:
    """The largest n >= least with fits(n), or least - 1: fits must be monotone."""
    if not fits(least):
        return least - 1
    step = 1
    while fits(least + step):
        step *= 2
    low, high = least + step // 2, least + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def grow(config: T, name: str, budget: Budget, spec: Spec, least: int) -> T:
    """`config` with the largest number `name` that fits, at least `least` whether that fits or not."""
    n = largest(lambda n: with_numbers(config, **{name: n}).within(budget, spec), least)
    return with_numbers(config, **{name: max(n, least)})


def with_numbers(config: T, **numbers: Any) -> T:
    return replace(config, **numbers)


def equivalent(budget: Budget, spec: Spec, storage: str) -> float:
    """The budget in images per class."""
    return budget.limit(spec, storage) / (spec.classes * spec.floats)


def too_small(config: CodecOptions, budget: Budget, spec: Spec) -> Refused:
    floats = config.floats(spec)
    ipc = math.ceil(1000 * (floats - 1) / (spec.classes * spec.floats)) / 1000
    numbers = ", ".join(f"{name}={v}" for name in config.numbers() if (v := getattr(config, name)) is not None)
    hint = f"budget.ipc={ipc:g}" + (", a smaller codec.rank" if config.rank is None or config.rank > 1 else "")
    return refuse("budget", budget, f"at least {floats} floats for {numbers} (one image per class is the least)", hint)


def check_rank(rank: int, spec: Spec) -> int:
    side = min(spec.shape[-2:])
    if rank > side:
        raise refuse("codec.rank", rank, f"1 to {side}, the side of an image", f"codec.rank={side} keeps every detail")
    return rank
