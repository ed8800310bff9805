"""What every codec family shares: units that belong to classes, labels, a start, learning-rate scales.

A family stores *units* (an image, a spectrum, a base); unit u belongs to class u % K, so classes are never stored and
what is left of a budget goes to the classes in turn. The first axis of the index space counts units; the other axes say
which of a unit's images is meant.

Labels are hard (derived, 0 floats) or soft: learned logits [units, K], stored and counted, one row for each unit.

**Learning-rate scales.** A run's `lr` is for pixels. With J the RMS change of a decoded pixel when every number of one
factor moves by +-1 (signs at random), that factor's player has scale 1 / J: one step of an optimiser with unit-size
updates (Adam) moves the images as much as the same step would move pixels. Decoding is linear in each factor taken
alone, so J is measured by decoding the moved factor, exactly. Plain SGD multiplies by J twice, once in the gradient
and once in the step: there the fair rate is lr * scale ** 2, which the engine applies.

Shapes: N images of a minibatch, K classes, U units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayd.data.images import Spec
from rayd.distill.budget import Shapes, Stored
from rayd.distill.contract import Codec, OptimiserConfig, Player
from rayd.distill.fit import CodecOptions
from rayd.distill.storage import Shape
from rayd.seeds import generator

Take = Callable[[int, int], Tensor]
CONFIDENCE = 0.9
"""Probability of its own class that a soft label starts from."""
PROBES = 4
SAMPLE = 64


def rank_within_group(group_N: Tensor) -> Tensor:
    """How many of its own group stand before each element: [3, 5, 3, 3, 5] gives [0, 0, 1, 2, 1]."""
    order_N = group_N.argsort(stable=True)
    sorted_N = group_N[order_N]
    rank_N = torch.empty_like(group_N)
    rank_N[order_N] = torch.arange(len(group_N), device=group_N.device) - torch.searchsorted(sorted_N, sorted_N)
    return rank_N


class Family(Codec):
    """A codec whose units belong to classes in turn."""

    config: Any
    inner: int
    """Images of one unit."""

    def __init__(self, config: CodecOptions, spec: Spec, axes: dict[str, int]) -> None:
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
    def teach(self, predict: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Soft labels start at a teacher's logits on the decoded images, centred, averaged over a unit.

        A unit that the teacher takes for another class keeps its own-class start: DATM counts no expert that is wrong.
        """
        if not self.learns_labels:
            return
        index = torch.arange(len(self))
        slot = self.slot_of(index)
        index = index[rank_within_group(slot) < SAMPLE]
        total = torch.zeros_like(self.labels)
        for part in index.split(256):
            logits = predict(self.images(part), self.class_of(part))
            total.index_add_(0, self.slot_of(part).to(total.device), logits.float().to(total.device))
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
            rate = self.config.lr_labels
            sgd = None if rate is None else OptimiserConfig(name="sgd", lr=rate, momentum=0.9)
            players.append(Player("labels", (self.labels,), optimiser=sgd))
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
        how = {name: self.config.stored_as(name, role) for name, role in roles.items()}
        return {name: Stored(p, roles[name], how[name]) for name, p in self.named_parameters()}


def normal(rng: torch.Generator, shape: Shape, std: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=rng) * std)


# --- the factorised core -------------------------------------------------------------------------------------------

BANKS = ("mix", "tint", "rows", "cols")


class Factorised(Family):
    """A contraction with a sharing pattern; LoDC, LSS and NSD are presets of it. Absent banks are None.

        image[c, h, w] = sum_{a, d, p, q} mix[a] * tint[d, c] * rows[c, p, h] * cols[c, q, w] * core[a, d, p, q]

    `core` has one block for each unit. The other four are *banks*: bank[g] is one set of maps, and which set, and which
    column of `mix`, an image uses is the preset's sharing pattern, `address`. An absent bank leaves its mode as it is.

        core [U, A, D, P, Q]    mix [G, A, B]    tint [G, D, C]    rows [G, 1 or C, P, H]    cols [G, 1 or C, Q, W]

    | preset | core is | mix | tint | rows | cols |
    |---|---|---|---|---|---|
    | lodc | B [U, 1, C, r, W], one image | - | - | A, each image its own | - |
    | lss, one side | V [U, 1, C, r, W], one image | - | - | D, a subspace's images share it | - |
    | lss, two sides | S [U, 1, C, r, r], one image | - | - | L, shared, all channels alike | R, likewise |
    | nsd | spectrum [U, tB, C, t, t] of many images | KB | KC or - | KH | KW |

    Decoding costs matrix products on what the minibatch uses: images of one unit are mixed together, and each bank's maps
    are gathered for the images at hand.

    Shapes as above; N images of a minibatch, G sets of a bank.
    """

    core: nn.Parameter
    mix: nn.Parameter | None
    tint: nn.Parameter | None
    rows: nn.Parameter | None
    cols: nn.Parameter | None

    def __init__(
        self, config: CodecOptions, spec: Spec, axes: dict[str, int], shapes: Shapes, rng: torch.Generator
    ) -> None:
        """Noise in every factor, scaled so that decoded pixels have variance 1."""
        super().__init__(config, spec, axes)
        for name in ("core", *BANKS):
            if name not in shapes:
                self.register_parameter(name, None)
                continue
            shape = shapes[name][0]
            if name == "core":
                std = full_std(shapes)
            elif name in ("rows", "cols"):
                std = shape[-1] ** -0.5
            else:
                std = shape[-2] ** -0.5
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=rng) * std))

    def address(self, index_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(unit, set of the banks, column of mix) of each image, on the CPU."""
        raise NotImplementedError

    def images(self, index_N: Tensor) -> Tensor:
        unit_N, set_N, column_N = self.address(index_N)
        device = self.core.device
        set_N = set_N.to(device)
        if self.mix is None:
            x_NDPQ = self.core[unit_N.to(device), 0]
        else:
            x_NDPQ = mixed(self.core, unit_N, self.mix[set_N, :, column_N.to(device)])
        if self.tint is not None:
            tint_NCD = pick(self.tint, set_N).transpose(1, 2)
            x_NDPQ = (tint_NCD @ x_NDPQ.flatten(2)).unflatten(2, x_NDPQ.shape[2:])
        if self.rows is not None:
            x_NDPQ = pick(self.rows, set_N).transpose(2, 3) @ x_NDPQ
        return x_NDPQ if self.cols is None else x_NDPQ @ pick(self.cols, set_N)


def full_std(shapes: Shapes) -> float:
    """Standard deviation of a noise core under which decoded pixels have variance 1, the banks being as built."""
    variance = 1.0
    for name in ("rows", "cols"):
        if name in shapes:
            *_, k, side = shapes[name][0]
            variance *= k / side
    return float(variance**-0.5)


def pick(bank: Tensor, set_N: Tensor) -> Tensor:
    return bank if len(bank) == 1 else bank.index_select(0, set_N)


def mixed(core_UADPQ: Tensor, unit_N: Tensor, weight_NA: Tensor) -> Tensor:
    """sum_a weight[n, a] * core[unit[n], a]: one batched product over the units in use, padded to the busiest one."""
    used_G, place_N, count_G = unit_N.unique(return_inverse=True, return_counts=True)
    width = int(count_G.max())
    slot_N = (rank_within_group(place_N) + place_N * width).to(core_UADPQ.device)
    core_GAF = core_UADPQ.flatten(2)
    if len(used_G) < len(core_UADPQ):
        core_GAF = core_GAF.index_select(0, used_G.to(core_UADPQ.device))
    padded = weight_NA.new_zeros(len(used_G) * width, weight_NA.shape[1]).index_copy(0, slot_N, weight_NA)
    x_NF = (padded.unflatten(0, (len(used_G), width)) @ core_GAF).flatten(0, 1).index_select(0, slot_N)
    x_NDPQ: Tensor = x_NF.unflatten(1, core_UADPQ.shape[2:])
    return x_NDPQ


# --- subspaces to start from -----------------------------------------------------------------------------------------


def dct(k: int, n: int) -> Tensor:
    """The k lowest rows of the orthonormal DCT-II of length n: [k, n]."""
    frequency_K1, place_N = torch.arange(k)[:, None], torch.arange(n)
    basis_KN = torch.cos(torch.pi / n * (place_N + 0.5) * frequency_K1) * (2 / n) ** 0.5
    basis_KN[0] /= 2**0.5
    return torch.as_tensor(basis_KN)


def leading(x_ND: Tensor, k: int) -> Tensor:
    """Orthonormal basis [k, D] of the k directions with most of the rows' energy, completed where there are fewer."""
    gram_DD = x_ND.double().T @ x_ND.double()
    basis_DD: Tensor = torch.linalg.eigh(gram_DD).eigenvectors.flip(1).T
    return basis_DD[:k].to(x_ND.dtype)
