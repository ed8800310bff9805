"""NSD, neural spectral decomposition. Yang et al., ECCV 2024, arXiv:2408.16236.

A class owns spectrum tensors; sets of kernels, shared by everything, map them to blocks of images over the B, H and W
modes, every spectrum by every set:

    block_{i,j}[b, c, h, w] = sum_{a,p,q} KB_j[a, b] KH_j[p, h] KW_j[q, w] T_i[a, c, p, q]

    floats = U * tB * tC * tH * tW + N_K * (tB * uB + tH * H + tW * W [+ tC * C])

`core` is T, `mix` is KB, `rows` KH, `cols` KW, and `tint`, with `channels: mixed`, a KC over the channels. The paper's
sizes and scopes could not be had; it starts from noise. What we changed is therefore a choice, and a YAML key each:
`scope`, `channels`, `basis`, `blend`, `depth`, `expand`, `start`. Its inner loop could not be had either: presets have
SPEED's steps, windows and batches, without SPEED's averaged student. Its guidance by real samples is the term `guidance`.

NSD's guidance by the distribution of real samples. Yang et al., ECCV 2024, arXiv:2408.16236.

    + weight * mean_c || mean phi(A(real_c)) - mean phi(A(synthetic_c)) ||^2 / || mean phi(A(real_c)) ||^2

phi: the embedding before the classifier, of the network that the item matches towards (an expert's later row, already
loaded) or, where an objective has none, of the one it is at. The paper's formula could not be had; dividing by the real
features' size, and the weight that makes its gradient a fifth of the objective's at the first step, are ours.

Real and synthetic images get the same operations (siamese, as in DSA). `classes` of the classes, by the item's seed,
bound the cost. c classes looked at, D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rayd.data.augment import AugmentConfig, Draw
from rayd.data.images import Spec
from rayd.distill.budget import Budget, Shapes
from rayd.distill.codec import Factorised, Take, dct, leading
from rayd.distill.contract import Codec, Inputs, Item, Match, Term
from rayd.distill.fit import CodecOptions, check_rank, equivalent, grow, largest, with_numbers
from rayd.distill.unroll import DTYPES
from rayd.errors import refuse
from rayd.seeds import generator

JITTER = 0.01
"""Noise on kernels that would otherwise start alike."""
KERNELS = (8, 6, 4, 3, 2, 1)


class Nsd(Factorised):
    @dataclass(frozen=True, kw_only=True)
    class Config(CodecOptions):
        """rank: tH = tW, the size of a spectrum; by default a quarter of the side at IPC 1, an eighth more for each
        factor of ten. sharing: N_K, sets of kernels; 8 by default, fewer where they would take half of the budget."""

        scope: Literal["class", "global"] = "class"
        """Who owns a spectrum: a class, or all classes together (the columns of KB then belong to classes in turn)."""
        channels: Literal["full", "mixed"] = "full"
        """mixed: each kernel set also maps the channels (its own colours)."""
        basis: Literal["dct", "svd", "random"] = "dct"
        """Where KH and KW start: low frequencies, leading subspaces of real images, noise."""
        blend: Literal["noise", "pick"] = "noise"
        """Where KB starts: random mixtures of a spectrum's slices, or one slice for each image and a little noise."""
        expand: float = 2.0
        """Images of a block for each slice of a spectrum: uB / tB."""
        depth: int = 64
        """Slices of a spectrum at most; a class has more spectra beyond it (scope: class)."""
        spectra: int | None = None
        """N_T in all; a multiple of the number of classes unless scope is global."""
        slices: int | None = None
        """tB."""
        columns: int | None = None
        """uB: images of a block."""
        colours: int | None = None
        """tC; the image's channels by default."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.expand > 0:
                raise refuse("codec.expand", self.expand, "above 0")

        @classmethod
        def resolved(cls) -> tuple[str, ...]:
            return ("rank", "sharing", "spectra", "slices", "columns", "colours")

        @classmethod
        def numbers(cls) -> tuple[str, ...]:
            return (*cls.resolved(), "depth")

        def shapes(self, spec: Spec) -> Shapes:
            channels, height, width = spec.shape
            t, k, depth = self.rank or 0, self.sharing or 0, self.slices or 0
            colours = self.colours or channels
            banks: dict[str, tuple[int, ...]] = {
                "core": (self.spectra or 0, depth, colours, t, t),
                "mix": (k, depth, self.columns or 0),
                "tint": (k, colours, channels),
                "rows": (k, 1, t, height),
                "cols": (k, 1, t, width),
            }
            if self.channels == "full":
                del banks["tint"]
            return {name: (shape, "factors" if name == "core" else "decoder") for name, shape in banks.items()}

        def slots(self, spec: Spec) -> int:
            """One for each spectrum, or, where classes share them, for each column."""
            return (self.spectra if self.scope == "class" else self.columns) or 0

        def decoded(self, spec: Spec) -> int:
            return (self.spectra or 0) * (self.sharing or 0) * (self.columns or 0)

        def resolve(self, budget: Budget, spec: Spec) -> Nsd.Config:
            """Without a rank: of the rule's and those up to a third above, the one under which blocks are nearest to
            `expand`, since a remainder that becomes columns adds mixtures but no detail."""
            side, ipc = min(spec.shape[-2:]), equivalent(budget, spec, self.storage)
            rule = min(max(2, round(side * (0.25 + 0.125 * math.log10(max(ipc, 1.0))))), side)
            ranks = [self.rank] if self.rank else range(rule, min(rule + rule // 3, side) + 1)
            fitted = [self._at_rank(check_rank(rank, spec), budget, spec) for rank in ranks]
            fitting = [config for config in fitted if config.within(budget, spec)] or fitted[:1]
            return min(fitting, key=lambda config: round((config.columns or 0) / (config.slices or 1), 2))

        def _at_rank(self, rank: int, budget: Budget, spec: Spec) -> Nsd.Config:
            config = with_numbers(self, rank=rank, colours=self.colours or spec.shape[0])
            if config.colours != spec.shape[0] and self.channels == "full":
                raise refuse(
                    "codec.colours", self.colours, f"{spec.shape[0]} with channels: full", "codec.channels=mixed"
                )
            if self.sharing is not None:
                return config._sized(budget, spec)
            fitted = [replace(config, sharing=kernels)._sized(budget, spec) for kernels in KERNELS]
            return next((one for one in fitted if one._sound(budget, spec)), fitted[-1])

        def _sound(self, budget: Budget, spec: Spec) -> bool:
            """Within the budget, not too deep, and no more than half of it in kernels."""
            if not self.within(budget, spec):
                return False
            shared = sum(math.prod(shape) for shape, role in self.shapes(spec).values() if role == "decoder")
            return self.scope == "global" or ((self.slices or 0) <= self.depth and 2 * shared <= self.floats(spec))

        def _sized(self, budget: Budget, spec: Spec) -> Nsd.Config:
            """As few spectra as `depth` allows, of as many slices as fit; what is left becomes columns."""
            owners = spec.classes if self.scope == "class" else 1
            spectra = self.spectra or owners
            if spectra % owners:
                raise refuse(
                    "codec.spectra", self.spectra, f"a multiple of {owners}, the classes", "codec.scope=global"
                )
            while True:
                fitted = replace(self, spectra=spectra)._deep(budget, spec)
                if self.spectra or self.slices or fitted._sound(budget, spec) or not fitted.within(budget, spec):
                    return fitted
                spectra += owners

        def _deep(self, budget: Budget, spec: Spec) -> Nsd.Config:
            least = 1 if self.scope == "class" else spec.classes

            def at(depth: int) -> Nsd.Config:
                return replace(self, slices=depth, columns=self.columns or max(least, round(self.expand * depth)))

            depth = self.slices or largest(lambda n: at(n).within(budget, spec))
            fitted = at(max(depth, 1))
            return fitted if self.columns else grow(fitted, "columns", budget, spec, fitted.columns or 1)

        def build(self, spec: Spec, rng: torch.Generator) -> Nsd:
            axes = {"spectrum": self.spectra or 0, "kernel": self.sharing or 0, "column": self.columns or 0}
            return Nsd(self, spec, axes, self.shapes(spec), rng)

    def address(self, index_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        columns = self.axes["column"]
        return index_N // self.inner, index_N // columns % self.axes["kernel"], index_N % columns

    def slot_of(self, index_N: Tensor) -> Tensor:
        return index_N // self.inner if self.config.scope == "class" else index_N % self.axes["column"]

    def begin(self, take: Take, rng: torch.Generator) -> None:
        assert self.mix is not None and self.rows is not None and self.cols is not None
        depth = self.core.shape[1]
        real_UA = self._real(take, depth)
        r, (_, height, width) = self.config.rank, self.spec.shape
        if self.config.basis == "random":
            rows, cols = leading(self.rows[0, 0], height)[:r], leading(self.cols[0, 0], width)[:r]
        elif self.config.basis == "svd":
            every = real_UA.flatten(0, 1)
            rows, cols = leading(every.mT.flatten(0, 2), r), leading(every.flatten(0, 2), r)
        else:
            rows, cols = dct(r, height).to(self.core), dct(r, width).to(self.core)
        spectra = rows @ real_UA @ cols.T
        if self.tint is not None:
            colours = leading(real_UA.transpose(2, 4).flatten(0, 3), self.tint.shape[1])
            spectra = torch.einsum("dc,uacpq->uadpq", colours, spectra)
            self.tint.copy_(_jittered(colours, self.tint, rng))
        self.core.copy_(spectra)
        self.rows.copy_(_jittered(rows, self.rows, rng))
        self.cols.copy_(_jittered(cols, self.cols, rng))
        if self.config.blend == "pick":
            self._pick(depth)

    def _pick(self, depth: int) -> None:
        """Each image starts as one slice of a spectrum: column b of set j picks slice b + j * columns, so that the sets
        start with different slices. A tenth of the noise stays, which tells apart images that pick the same slice; where
        no two do (one set, as many columns as slices) there is none."""
        assert self.mix is not None
        sets, _, columns = self.mix.shape
        self.mix.mul_(0.0 if sets == 1 and columns == depth else 0.1)
        column_B = torch.arange(columns)
        for j in range(sets):
            self.mix[j, (column_B + j * columns) % depth, column_B] += 1

    def _real(self, take: Take, depth: int) -> Tensor:
        """The real images that spectra start from: [U, A, C, H, W]; slices of shared spectra go to classes in turn."""
        k, units = self.spec.classes, self.axes["spectrum"]
        real = self.core.new_empty(units * depth, *self.spec.shape)
        owner = (
            torch.arange(units * depth) % k
            if self.config.scope == "global"
            else torch.arange(units * depth) // depth % k
        )
        for c in range(k):
            members = (owner == c).nonzero().flatten()
            real[members] = take(c, len(members)).to(real)
        return real.view(units, depth, *self.spec.shape)


def _jittered(basis_KN: Tensor, like: Tensor, rng: torch.Generator) -> Tensor:
    """The same start for every set of a bank, told apart by a little noise (one set needs none)."""
    noise = torch.randn(like.shape, generator=rng) * (JITTER if len(like) > 1 else 0.0)
    return basis_KN + noise.to(like)


class Guidance(Term):
    asks: ClassVar[frozenset[str]] = frozenset({"net", "theta"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        weight: float | None = None
        """Against the objective's value; null: it follows from `ratio`."""
        ratio: float = 0.2
        """Of the guidance's gradient to the objective's, at the first step."""
        classes: int = 10
        """Classes looked at in an item."""
        batch_real: int = 64
        """Real images of each."""
        batch_syn: int = 64
        """Synthetic images of each, at most."""
        augment: AugmentConfig = field(default_factory=AugmentConfig)

        def __post_init__(self) -> None:
            if self.weight is not None and not self.weight >= 0:
                raise refuse("guidance.weight", self.weight, "0 or more, or null for `ratio`", "0 turns it off")
            if not self.ratio > 0:
                raise refuse("guidance.ratio", self.ratio, "above 0", "guidance.weight=0 turns it off")
            for name in ("classes", "batch_real", "batch_syn"):
                if getattr(self, name) < 1:
                    raise refuse(f"guidance.{name}", getattr(self, name), "a whole number from 1")

        def build(self, inputs: Inputs, codec: Codec) -> Guidance:
            return Guidance(self, inputs)

    def __init__(self, config: Config, inputs: Inputs) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs
        self.weigh(config.weight, config.ratio)
        self.augment = config.augment.build()

    def value(self, codec: Codec, item: Item, match: Match) -> Match:
        theta_P: Tensor = match.scene.get("target", match.scene["theta"]).detach()
        rng = generator(item.seed, "guidance")
        chosen = torch.randperm(self.inputs.spec.classes, generator=rng)[: self.config.classes].tolist()
        real = [some(self.inputs.members(c), self.config.batch_real, rng) for c in chosen]
        synthetic = [some(codec.of_class(c), self.config.batch_syn, rng) for c in chosen]
        most = max(sum(map(len, real)), sum(map(len, synthetic)))
        draw = self.augment.draw(rng, most, self.inputs.spec.shape)
        with torch.no_grad():
            real_CD = self._means(theta_P, self.inputs.real(torch.cat(real)), draw, real)
        synthetic_CD = self._means(theta_P, codec.decode(torch.cat(synthetic))[0], draw, synthetic)
        size_C = real_CD.square().sum(1).clamp_min(1e-12)
        value = ((real_CD - synthetic_CD).square().sum(1) / size_C).mean()
        return Match(value, {"guidance": value.detach()})

    def _means(self, theta_P: Tensor, images_NCHW: Tensor, draw: Draw, parts: list[Tensor]) -> Tensor:
        """Mean embedding of each class [c, D]."""
        views = self.augment(images_NCHW, draw.rows(0, len(images_NCHW)).to(images_NCHW.device))
        dtype = DTYPES[self.inputs.precision]
        embedding_ND = self.inputs.net.features(theta_P.to(dtype), views.to(dtype))[-1].float().flatten(1)
        return torch.stack([part.mean(0) for part in embedding_ND.split([len(part) for part in parts])])


def some(index: Tensor, n: int, rng: torch.Generator) -> Tensor:
    return index[torch.randperm(len(index), generator=rng)[:n]]
