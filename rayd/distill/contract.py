"""The contract between a method and the engine: Codec (what is stored), Objective (what is matched), Term (what is added).

Written against the hardest methods first:

* NCFM's psi and HaBa's adversary are *players*: named groups of parameters with their own optimiser, moved by their own
  `autograd.grad` of their own loss, never through a shared `.grad`.
* HaBa's minibatch (one hallucinator a batch) is the codec's `draw`; everything else takes whatever index `draw` returns.
* DC's inner training is `Objective.after`: it runs on every worker alike once a step is taken, and lives in `state()`.
* DATM's learned labels belong to the codec (stored, counted); its start and windows belong to the objective.
* DWA's blocks are independent runs of the same engine; within one, `encode` gives the real start and the objective owns
  the perturbed teacher.

A step is a planned list of numbered items. Workers share the items out; the engine sums every player's gradient over all
items with one all-reduce, divides by the number of items if the objective says `mean`, and every worker steps alike.

Shapes: N images, C channels, H, W sides, K classes, P network parameters. Images are in *network space* (normalised or
whitened), which is what every codec decodes to; its projection onto legal pixels is done there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.distill.budget import Budget, Stored
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


@dataclass(frozen=True)
class Player:
    """A group of parameters that one optimiser moves."""

    name: str
    params: tuple[Tensor, ...]
    scale: float = 1.0
    """Learning-rate scale: lr of the group = run's lr * scale, unless `lr` says an absolute one."""
    lr: float | None = None
    optimiser: str | None = None
    """adam | adamw | sgd; None: the run's own."""
    momentum: float | None = None
    weight_decay: float = 0.0
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


class Codec(Part):
    """What is stored, and how images and labels come out of it."""

    Config: ClassVar[type[Any]]
    spec: Spec
    axes: dict[str, int]
    """The index space: name -> length; `len(codec)` is their product. A flat index is row-major over the axes."""
    per_class: ClassVar[bool] = True
    """Index space splits by class: `of_class` works (all our codecs)."""
    learns_labels: bool = False

    def __len__(self) -> int:
        raise NotImplementedError

    def draw(self, rng: torch.Generator, n: int) -> Tensor:
        """How a minibatch is taken: a flat int64 CPU index of n images without repetition where possible."""
        return torch.randperm(len(self), generator=rng)[:n]

    def draws(self, rng: torch.Generator, n: int, batches: int) -> list[Tensor]:
        """Minibatches for an inner loop: the set is walked through in a random order, reshuffled when exhausted."""
        if n >= len(self):
            return [torch.arange(len(self))] * batches
        order = torch.cat([torch.randperm(len(self), generator=rng) for _ in range(-(-n * batches // len(self)))])
        return list(order[: n * batches].split(n))

    def of_class(self, c: int) -> Tensor:
        """Flat indices of the images of class c."""
        return (self.classes() == c).nonzero().flatten()

    def classes(self) -> Tensor:
        """Class of every flat index, int64 [len]."""
        raise NotImplementedError

    def decode(self, index_N: Tensor) -> tuple[Tensor, Tensor]:
        """images [N, *spec.shape] in network space and label probabilities [N, K]; differentiable, pure, any subset."""
        raise NotImplementedError

    def encode(self, take: Callable[[int, int], Tensor], rng: torch.Generator) -> None:
        """Start from real images: take(c, n) gives n of class c in network space, chosen by plan."""
        raise NotImplementedError

    def teach(self, predict: Callable[[Tensor], Tensor]) -> None:
        """Start learned labels from a teacher's logits."""

    def project(self, transform: Transform) -> None:
        """After a step: back onto what is legal, if anything is."""


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

    def plan(self, step: int) -> list[Item]:
        raise NotImplementedError

    def index(self, codec: Codec, item: Item) -> Tensor:
        """Flat indices of the images that an item moves: of an objective whose items are independent blocks."""
        raise NotImplementedError

    def fetch(self, item: Item) -> Any:
        """The item's data out of the world: runs ahead of the step, in a thread; no randomness but item.seed."""
        return None

    def forward(self, codec: Codec, item: Item, data: Any) -> Match:
        raise NotImplementedError

    def after(self, codec: Codec, step: int) -> None:
        """Once the step is taken, on every worker alike (DC's inner training)."""


class Term(Part):
    """A weighted addition fed by the Match's scene. Adds to `match.value` (times its weight) or to its own player's loss."""

    Config: ClassVar[type[Any]]
    asks: ClassVar[frozenset[str]] = frozenset()
    multiclass: ClassVar[bool] = False
    """Meaningless on items of a single class."""

    def forward(self, codec: Codec, item: Item, match: Match) -> Match:
        raise NotImplementedError


class CodecConfig(Protocol):
    """What every codec's frozen Config offers."""

    def fit(self, budget: Budget, spec: Spec) -> Any:
        """The largest configuration within the budget; refuses, with the nearest that would work."""
        ...

    def build(self, spec: Spec, rng: torch.Generator) -> Codec: ...


Steps = Iterator[Any]
