"""What every codec family shares: units that belong to classes, labels, fitting to a budget, learning-rate scales.

A family stores *units* (an image, a spectrum, a base); unit u belongs to class u % K, so classes are never stored and
what is left of a budget goes to the classes in turn. The first axis of the index space counts units; the other axes say
which of a unit's images is meant.

Labels are hard (derived, 0 floats) or soft: learned logits [units, K], stored and counted, one row for each unit.

**Learning-rate scales.** A run's `lr` is for pixels. With J the RMS change of a decoded pixel when every number of one
factor moves by +-1 (signs at random), that factor's player has scale 1 / J: one step of an optimiser with unit-size
updates (Adam) moves the images as much as the same step would move pixels. Decoding is linear in each factor taken
alone, so J is measured by decoding the moved factor, exactly. Plain SGD multiplies by J twice, once in the gradient
and once in the step: there the fair rate is lr * scale ** 2.

Shapes: N images of a minibatch, K classes, U units.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayd.budget import Budget, Shape, Shapes, Stored
from rayd.data import Spec
from rayd.errors import Refused, refuse
from rayd.methods.contract import Codec, Player
from rayd.seeds import generator

log = logging.getLogger(__name__)

T = TypeVar("T", bound="Options")
Take = Callable[[int, int], Tensor]
CONFIDENCE = 0.9
"""Probability of its own class that a soft label starts from."""
PROBES = 4
SAMPLE = 64


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every codec's Config offers. Numbers that are None are resolved by `fit`; given ones are kept."""

    rank: int | None = None
    """How much detail an image keeps; what it means is the family's. None: the family's rule for the budget."""
    sharing: int | None = None
    """How much is shared between images; what it means is the family's. None: the family's rule."""
    labels: Literal["hard", "soft"] = "hard"
    """soft: learned logits, one row for each unit, counted by the ledger."""
    storage: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    """The type written to the artifact; scores are of what is stored."""
    start: Literal["real", "confident", "noise"] = "real"
    """Real images by plan, those first that an expert gets right, or noise."""
    lr_labels: float | None = None
    """Rate of SGD with momentum 0.9 for soft labels, as DATM publishes it; None: the run's optimiser and rate."""

    def __post_init__(self) -> None:
        for name in self.numbers():
            given = getattr(self, name)
            if given is not None and given < 1:
                raise refuse(f"codec.{name}", given, "a whole number from 1, or null for the family's rule")
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
        """The largest configuration that fits, given that something does."""
        raise NotImplementedError

    def build(self, spec: Spec, rng: torch.Generator) -> Family:
        raise NotImplementedError

    # What follows from it.

    def all_shapes(self, spec: Spec) -> Shapes:
        soft = {"labels": ((self.slots(spec), spec.classes), "labels")} if self.learns_labels else {}
        return {**self.shapes(spec), **soft}

    def floats(self, spec: Spec) -> int:
        """Numbers in the file, the step size and the scales of int8 included."""
        one = Budget(floats=1)
        return round(one.used(self.all_shapes(spec), spec, self.storage))

    def within(self, budget: Budget, spec: Spec) -> bool:
        return budget.holds(self.all_shapes(spec), spec, self.storage)

    def fill(self, budget: Budget, spec: Spec) -> float:
        return budget.used(self.all_shapes(spec), spec, self.storage)

    def fit(self, budget: Budget, spec: Spec) -> Self:
        """The largest configuration within the budget: pure arithmetic."""
        fitted = (
            self if all(getattr(self, name) is not None for name in self.resolved()) else self.resolve(budget, spec)
        )
        if not fitted.within(budget, spec):
            raise too_small(fitted, budget, spec)
        log.info("%s", fitted.describe(budget, spec))
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


def grown(config: T, name: str, budget: Budget, spec: Spec, least: int) -> T:
    """`config` with the largest number `name` that fits, at least `least` whether that fits or not."""
    n = largest(lambda n: with_numbers(config, **{name: n}).within(budget, spec), least)
    return with_numbers(config, **{name: max(n, least)})


def with_numbers(config: T, **numbers: Any) -> T:
    return replace(config, **numbers)


def equivalent(budget: Budget, spec: Spec, storage: str) -> float:
    """The budget in images per class."""
    return budget.limit(spec, storage) / (spec.classes * spec.floats)


def too_small(config: Options, budget: Budget, spec: Spec) -> Refused:
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


class Family(Codec):
    """A codec whose units belong to classes in turn."""

    config: Any
    inner: int
    """Images of one unit."""

    def __init__(self, config: Options, spec: Spec, axes: dict[str, int]) -> None:
        super().__init__()
        config.need(config.resolved())
        self.config, self.spec, self.axes = config, spec, axes
        self.inner = math.prod(list(axes.values())[1:])
        self.learns_labels = config.learns_labels
        self._scales: dict[str, float] = {}
        if self.learns_labels:
            self.labels = nn.Parameter(self._own_class(torch.arange(config.slots(spec)) % spec.classes))

    def __len__(self) -> int:
        return math.prod(self.axes.values())

    # --- which image ------------------------------------------------------------------------------------------------

    def slot_of(self, index_N: Tensor) -> Tensor:
        """Row of soft labels, which is the unit."""
        return index_N // self.inner

    def class_of(self, index_N: Tensor) -> Tensor:
        return self.slot_of(index_N) % self.spec.classes

    def classes(self) -> Tensor:
        return self.class_of(torch.arange(len(self)))

    def units_of(self, c: int) -> int:
        """Units of class c."""
        return len(range(c, next(iter(self.axes.values())), self.spec.classes))

    # --- decoding ---------------------------------------------------------------------------------------------------

    def images(self, index_N: Tensor) -> Tensor:
        raise NotImplementedError

    def targets(self, index_N: Tensor) -> Tensor:
        """Label probabilities [N, K]."""
        if self.learns_labels:
            return self.labels[self.slot_of(index_N).to(self.labels.device)].softmax(1)
        device = next(self.parameters()).device
        return F.one_hot(self.class_of(index_N), self.spec.classes).float().to(device)

    def decode(self, index_N: Tensor) -> tuple[Tensor, Tensor]:
        return self.images(index_N), self.targets(index_N)

    # --- the start --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, take: Take, rng: torch.Generator) -> None:
        if self.config.start != "noise":
            self.begin(take, rng)
        self._measure()

    def begin(self, take: Take, rng: torch.Generator) -> None:
        """Set the factors from real images."""
        raise NotImplementedError

    def _own_class(self, class_U: Tensor) -> Tensor:
        """Logits that give CONFIDENCE to the class."""
        k = max(self.spec.classes, 2)
        return F.one_hot(class_U, self.spec.classes).float() * math.log(CONFIDENCE * (k - 1) / (1 - CONFIDENCE))

    @torch.no_grad()
    def teach(self, predict: Callable[[Tensor], Tensor]) -> None:
        """Soft labels start at a teacher's logits on the decoded images, centred, averaged over a unit.

        A unit that the teacher takes for another class keeps its own-class start: DATM counts no expert that is wrong.
        """
        if not self.learns_labels:
            return
        index = torch.arange(len(self))
        slot = self.slot_of(index)
        rank = torch.zeros_like(slot)
        order = slot.argsort(stable=True)
        ordered = slot[order]
        rank[order] = torch.arange(len(slot)) - torch.searchsorted(ordered, ordered)
        index = index[rank < SAMPLE]
        total = torch.zeros_like(self.labels)
        for part in index.split(256):
            total.index_add_(
                0, self.slot_of(part).to(total.device), predict(self.images(part)).float().to(total.device)
            )
        count = torch.bincount(self.slot_of(index), minlength=len(total)).to(total.device)
        logits = total / count[:, None]
        right = logits.argmax(1) == self.labels.argmax(1)
        self.labels[right] = (logits - logits.mean(1, keepdim=True))[right]

    # --- what moves and what is stored ------------------------------------------------------------------------------

    def factors(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if name != "labels"}

    def players(self) -> list[Player]:
        if not self._scales:
            self._measure()
        players: list[Player] = [Player(name, (p,), scale=self._scales[name]) for name, p in self.factors().items()]
        if self.learns_labels:
            own = self.config.lr_labels is not None
            more: dict[str, Any] = {"lr": self.config.lr_labels, "optimiser": "sgd", "momentum": 0.9} if own else {}
            players.append(Player("labels", (self.labels,), **more))
        return players

    @torch.no_grad()
    def _measure(self) -> None:
        """The scale of each factor, to three digits so that rounding noise does not reach a run."""
        rng = generator(0, "scale")
        index = torch.linspace(0, len(self) - 1, min(len(self), SAMPLE)).long()
        before = self.images(index)
        for name, p in self.factors().items():
            kept, moved = p.clone(), 0.0
            for _ in range(PROBES):
                p.add_((torch.randint(2, p.shape, generator=rng) * 2 - 1).to(p))
                moved += float((self.images(index) - before).square().mean()) / PROBES
                p.copy_(kept)
            self._scales[name] = float(f"{1 / math.sqrt(moved):.3g}") if moved > 0 else 1.0

    def stored(self) -> dict[str, Stored]:
        roles = {name: role for name, (_, role) in self.config.all_shapes(self.spec).items()}
        return {name: Stored(p, roles[name], self.config.storage) for name, p in self.named_parameters()}


def normal(rng: torch.Generator, shape: Shape, std: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=rng) * std)
