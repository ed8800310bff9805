"""The contract between a method and the engine: Codec (what is stored), Objective (what is matched), Term (what is added).

Written against the hardest methods first:

* NCFM's psi and HaBa's adversary are *players*: named groups of parameters with their own optimiser, moved by their own
  `autograd.grad` of their own loss, never through a shared `.grad`.
* HaBa's minibatch (bases under one hallucinator) is the codec's `draws`; the inner loop takes whatever index it returns.
* DC's inner training is `Objective.after`: it runs on every worker alike once a step is taken, and lives in `state()`.
* DATM's learned labels belong to the codec (stored, counted); its start and windows belong to the objective.
* DWA's blocks are independent runs of the same engine; within one, `encode` gives the real start and the objective owns
  the perturbed teacher.

A step is a planned list of numbered items. Workers share the items out; the engine sums every player's gradient over all
items with one all-reduce, divides by the number of items if the objective says `mean`, and every worker steps alike. More
workers than items share the images of an item (`Objective.share`).

Shapes: N images, C channels, H, W sides, K classes, P network parameters. Images are in *network space* (normalised or
whitened), which is what every codec decodes to; its projection onto legal pixels is done there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.distill.budget import Budget, Stored
from rayd.distill.storage import rounded
from rayd.distill.unroll import WHOLE, Split
from rayd.errors import Failed, refuse
from rayd.experts.trajectory import Segment
from rayd.nets.convnet import Net


@dataclass(frozen=True)
class Item:
    """One numbered piece of a step's work. `what` names the data it needs (an expert and epochs, a class, a network)."""

    step: int
    number: int
    seed: int
    what: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Match:
    """What an objective returns for one item. Players minimise `value` (those of sign -1 raise it)."""

    value: Tensor
    metrics: dict[str, Tensor | float] = field(default_factory=dict)
    scene: dict[str, Any] = field(default_factory=dict)
    """What terms may use: net, theta, images, labels, real_images, features, ... as the objective declares."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Losses of rivals that minimise something other than `value`: player name -> scalar."""
    skip: bool = False
    """The item contributes nothing to the step (DATM's threshold); counted."""


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """An optimiser and its rate: the run's, or a player's own, which inherits nothing from the run's."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Of the codec's parameters."""
    lr: float = 0.01
    """For the unit of pixels; factors scale it so that a step moves the decoded images alike. Under Adam the unit is the
    RMS of the network space, so one rate moves whitened and normalised pixels alike; under SGD it is the published rate."""
    momentum: float = 0.5
    """SGD's momentum, Adam's first beta (there at least 0.5)."""
    beta2: float = 0.999
    """Adam's second beta."""
    weight_decay: float = 0.0
    """Zero unless a paper decays its images."""
    decay: Literal["constant", "cosine", "plateau"] = "constant"
    """cosine: to zero at the last step; plateau: halved after 500 steps without a lower loss (NCFM's release)."""

    def __post_init__(self) -> None:
        if not self.lr > 0 or not 0 <= self.momentum < 1 or not 0 < self.beta2 < 1 or self.weight_decay < 0:
            raise refuse("optimiser", self, "lr > 0, 0 <= momentum < 1, 0 < beta2 < 1, weight_decay >= 0")


@dataclass(frozen=True)
class Player:
    """A group of parameters that one optimiser moves."""

    name: str
    params: tuple[Tensor, ...]
    scale: float | None = None
    """Of factors of images: the run's rate for pixels times this is the rate of the factor; None: no images, the rate
    as it stands."""
    optimiser: OptimiserConfig | None = None
    """Its own; None: the run's."""
    sign: int = 1
    """-1: ascends `Match.value` (NCFM's psi)."""


class Inputs(Protocol):
    """What a method may see of its surroundings; built by the job from what the parts need. No storage, no Ray."""

    net: Net
    spec: Spec
    transform: Transform
    device: torch.device
    seed: int
    precision: str
    """fp32 | tf32 | bf16: arithmetic of the network; parameters and losses stay fp32."""
    compiled: bool

    @property
    def experts(self) -> int: ...
    @property
    def last_epoch(self) -> int: ...
    def segment(self, expert: int, first: int, last: int) -> Segment: ...
    def theta(self, expert: int, epoch: int) -> Tensor: ...
    def members(self, c: int) -> Tensor:
        """Indices of the training examples of class c, sorted."""
        ...

    def real(self, index_N: Tensor) -> Tensor:
        """Those training examples in network space on the device."""
        ...

    def targets(self, index_N: Tensor) -> Tensor: ...


class Part(nn.Module):
    """What codecs, objectives and terms have in common. Parameters are registered the usual torch way."""

    def players(self) -> list[Player]:
        return []

    def stored(self) -> dict[str, Stored]:
        """Everything an artifact must carry: name -> (tensor, role)."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Everything a resume needs beyond the players' optimisers."""
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.load_state_dict(dict(state))

    def project(self, transform: Transform) -> None:
        """After a step: back onto what is legal, if anything is."""


def walk(length: int, n: int, batches: int, rng: torch.Generator) -> list[Tensor]:
    """Minibatches of n out of `length`: walked through in a random order, reshuffled when exhausted."""
    if n >= length:
        return [torch.arange(length)] * batches
    order = torch.cat([torch.randperm(length, generator=rng) for _ in range(-(-n * batches // length))])
    return list(order[: n * batches].split(n))


class Codec(Part):
    """What is stored, and how images and labels come out of it."""

    Config: ClassVar[type[Any]]
    spec: Spec
    axes: dict[str, int]
    """The index space: name -> length; `len(codec)` is their product. A flat index is row-major over the axes."""
    learns_labels: bool = False

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def full_batch(self) -> int:
        """Images of the largest minibatch of an inner loop."""
        return len(self)

    def draws(self, rng: torch.Generator, n: int, batches: int) -> list[Tensor]:
        """Minibatches for an inner loop: flat int64 indices on the CPU."""
        return walk(len(self), n, batches, rng)

    def of_class(self, c: int) -> Tensor:
        """Flat indices of the images of class c."""
        return (self.classes() == c).nonzero().flatten()

    def classes(self) -> Tensor:
        """Class of every flat index, int64 [len]."""
        raise NotImplementedError

    def decode(self, index_N: Tensor) -> tuple[Tensor, Tensor]:
        """images [N, *spec.shape] in network space and label probabilities [N, K]; differentiable, pure, any subset."""
        raise NotImplementedError

    def enter(self, transform: Transform, budget: Budget | None = None) -> None:
        """Before anything else: the network space, of a codec that stores pixels of its own, and the budget, of one that
        has to keep it while it learns; none where a set is only read."""

    def encode(self, take: Callable[[int, int], Tensor], rng: torch.Generator) -> None:
        """Start from real images: take(c, n) gives n of class c in network space, chosen by plan."""
        raise NotImplementedError

    def files(self) -> list[bytes] | None:
        """The image files that are stored, one an image, where a set is stored so."""
        return None

    @torch.no_grad()
    def quantise(self) -> None:
        """Every number becomes the one that a reader of its file gets."""
        for number in self.stored().values():
            number.tensor.copy_(rounded(number.tensor, number.storage))

    @torch.no_grad()
    def restore(self, numbers: Mapping[str, Tensor]) -> None:
        """Take the numbers that were read from a file, by the names of `stored`."""
        for name, number in self.stored().items():
            number.tensor.copy_(numbers[name])

    def teach(self, predict: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Start learned labels from the teachers' logits: predict(images, classes)."""


class Objective(Part):
    """What is matched."""

    Config: ClassVar[type[Any]]
    needs: ClassVar[frozenset[str]] = frozenset()
    """Of: segment, nets, pool, real, teacher."""
    uses_labels: ClassVar[bool] = False
    """Label probabilities enter the loss, so learned labels get a gradient."""
    multiclass: ClassVar[bool] = False
    """One item holds several classes (what a contrast over classes needs)."""
    gives: ClassVar[frozenset[str]] = frozenset()
    """Keys of the scene that terms may ask for."""
    reduction: ClassVar[str] = "mean"
    """mean | sum over the items of a step."""
    split: Split = WHOLE
    """Which of an item's images this worker takes, where an item has several workers."""

    def plan(self, step: int) -> list[Item]:
        raise NotImplementedError

    def index(self, codec: Codec, item: Item) -> Tensor:
        """Flat indices of the images that an item moves: of an objective whose items are independent blocks."""
        raise NotImplementedError

    def fetch(self, item: Item) -> Any:
        """The item's data out of the inputs: runs ahead of the step, in a thread; no randomness but item.seed."""
        return None

    def forward(self, codec: Codec, item: Item, data: Any) -> Match:
        raise NotImplementedError

    def share(self, split: Split) -> None:
        """Take a part of the images of each item, and of the gradient what follows from them. The value is the whole one."""
        knobs = "raise method.objective.items, or lower method.objective.classes_per_item, whichever this objective has"
        raise refuse("scale.workers", f"{split.of} for one item", "at most as many as a step has items", knobs)

    def halve(self) -> bool:
        """Ask for half as much memory a step from now on, for the same result but for rounding; False: it cannot."""
        return False

    def after(self, codec: Codec, step: int) -> None:
        """Once the step is taken, on every worker alike (DC's inner training)."""

    def step_size(self) -> float | None:
        """The learned step size of the inner loop, if there is one; it is then a key of `gives`, too."""
        return None

    def stuck(self, value: float) -> str:
        """Why a step of this value brings nothing, as the objective stands, though it has a gradient; empty where it may."""
        return ""


class Term(Part):
    """A weighted addition fed by the Match's scene: adds `weight` times its value, and losses of its own players.

    Where no weight is given it is set once, before the first step, so that the term's gradient is `ratio` of the
    objective's by norm, on the codec's parameters. The weight is then part of the state.
    """

    Config: ClassVar[type[Any]]
    asks: ClassVar[frozenset[str]] = frozenset()
    multiclass: ClassVar[bool] = False
    """Meaningless on items of a single class."""
    ratio: float | None = None
    weight: Tensor | float

    def weigh(self, weight: float | None, ratio: float | None = None) -> None:
        """Said by the constructor of a term: its weight, or the ratio that sets it."""
        if weight is not None:
            self.weight = weight
            return
        self.ratio = ratio
        self.register_buffer("weight", torch.tensor(math.nan, dtype=torch.float64))

    @property
    def unweighted(self) -> bool:
        return math.isnan(self.weight)

    def balance(self, objective: float, term: float) -> None:
        """Set the weight by the norms of the two gradients."""
        assert self.ratio is not None and isinstance(self.weight, Tensor)
        if not (objective > 0 and term > 0):
            name = type(self).__name__.lower()
            raise Failed(
                f"term {name}: its weight follows from the gradients of the first step, and they are {objective:.3g} for "
                f"the objective and {term:.3g} for the term; set the term's weight"
            )
        self.weight.fill_(self.ratio * objective / term)

    def value(self, codec: Codec, item: Item, match: Match) -> Match:
        """The term alone: its value, metrics and losses."""
        raise NotImplementedError

    def forward(self, codec: Codec, item: Item, match: Match) -> Match:
        if self.weight == 0:
            return match
        if self.unweighted:
            raise ValueError(f"{type(self).__name__}: its weight is not set yet (Distillation.run does it)")
        term = self.value(codec, item, match)
        total = match.value + float(self.weight) * term.value
        metrics, losses = match.metrics | term.metrics, match.losses | term.losses
        return replace(match, value=total, metrics=metrics, losses=losses)
