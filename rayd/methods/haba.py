"""HaBa, hallucinators and bases. Liu et al., NeurIPS 2022, arXiv:2210.16774.

    X_{i,j} = dec_j( sigma_j * enc_j(base_i) + mu_j )      bases [U, c_b, s, s], hallucinators j shared by all classes

enc: convolution k = 3 without padding, c_b -> C; sigma, mu: elementwise [C, H - 2, W - 2]; dec: its transposed like.
No nonlinearity. Floats = U * c_b * s^2 + N_H * (9 c_b C + C + 2 C (H - 2)(W - 2) + 9 C^2 + C): 5,568 for each of the
paper's five hallucinators at 32 px RGB, so that its 'IPC 1' is 1.9 IPC; here they fit into the budget or are refused.

A minibatch of the inner loop is `objective.batch` bases under one random hallucinator, as released (null: all bases). The
adversary with its contrast is the term `contrast`.

What we changed: any resolution and channel count (the release runs at 3 x 32 x 32 only); bases of fewer channels or
lower resolution where the budget asks for it; hallucinators start near the identity, so that images start near the real
ones (`near: false` for the release's random start); no standardisation of batches.

HaBa's adversarial contrast. Liu et al., NeurIPS 2022, arXiv:2210.16774, as released.

A rival network F looks at the same bases under two hallucinators, e and e' being its embeddings of them.

    codec:  + weight * mean (cos(e, e') + 1) / 2
    rival:  task * CE(F(x), y) + pull * mean (1 - cos(e, e')) / 2 + supervised * SupCon(e, y)

Hallucinators are to differ where the rival, which learns to see the class alone, sees no difference. It is a player of
its own: SGD, one step an outer step, on its own loss; a network of the run's architecture (the release's is a ConvNet-3
for 32 px). Any codec with an axis of alternatives will do: NSD's `kernel` sets are pushed apart alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from rayd.data.augment import AugmentConfig
from rayd.data.images import Spec
from rayd.distill.budget import Budget, Shapes
from rayd.distill.codec import Family, Take, normal
from rayd.distill.contract import Codec, Inputs, Item, Match, OptimiserConfig, Player, Term, walk
from rayd.distill.fit import CodecOptions, grow, with_numbers
from rayd.errors import refuse
from rayd.seeds import generator

HALLUCINATORS = (5, 4, 3, 2)
SIDES = (1.0, 0.875, 0.75, 0.625, 0.5)
NOISE = 0.1
"""Spread of hallucinators that start near the identity."""


class Haba(Family):
    @dataclass(frozen=True, kw_only=True)
    class Config(CodecOptions):
        """rank: channels of a base; all by default, fewer where the budget holds no base for each class.
        sharing: hallucinators; 5 by default, fewer likewise (at least 2)."""

        side: int | None = None
        """Height of a base, scaled up bilinearly to the image's; smaller only where nothing else fits."""
        bases: int | None = None
        """In all; classes in turn."""
        near: bool = True
        """Hallucinators start near the identity."""

        @classmethod
        def resolved(cls) -> tuple[str, ...]:
            return ("rank", "sharing", "side", "bases")

        def size(self, spec: Spec) -> tuple[int, int]:
            """Height and width of a base."""
            _, height, width = spec.shape
            side = self.side or height
            return side, max(1, round(width * side / height))

        def shapes(self, spec: Spec) -> Shapes:
            (c, height, width), h, b = spec.shape, self.sharing or 0, self.rank or 0
            return {
                "bases": ((self.bases or 0, b, *self.size(spec)), "factors"),
                "enc": ((h, c, b, 3, 3), "decoder"),
                "enc_bias": ((h, c), "decoder"),
                "sigma": ((h, c, height - 2, width - 2), "decoder"),
                "mu": ((h, c, height - 2, width - 2), "decoder"),
                "dec": ((h, c, c, 3, 3), "decoder"),
                "dec_bias": ((h, c), "decoder"),
            }

        def slots(self, spec: Spec) -> int:
            return self.bases or 0

        def decoded(self, spec: Spec) -> int:
            return (self.bases or 0) * (self.sharing or 0)

        def resolve(self, budget: Budget, spec: Spec) -> Haba.Config:
            """The largest bases, then the most hallucinators and channels, that leave a base for each class."""
            c, height, width = spec.shape
            if min(height, width) < 3:
                raise refuse("spec.shape", spec.shape, "sides of 3 or more", "codec=lodc")
            if self.rank is not None and self.rank > c:
                raise refuse("codec.rank", self.rank, f"1 to {c}, the channels of an image", f"codec.rank={c}")
            ranks = [self.rank] if self.rank else range(c, 0, -1)
            counts = [self.sharing] if self.sharing else HALLUCINATORS
            sides = [self.side] if self.side else [max(1, round(height * s)) for s in SIDES]
            config = self
            for side in sides:
                for count in counts:
                    for rank in ranks:
                        config = with_numbers(self, rank=rank, sharing=count, side=side)
                        config = config if self.bases else grow(config, "bases", budget, spec, spec.classes)
                        if config.within(budget, spec):
                            return config
            self._explain(config, budget, spec)
            return config

        def _explain(self, smallest: Haba.Config, budget: Budget, spec: Spec) -> None:
            """Hallucinators that the budget cannot hold: say how many it can."""
            if self.sharing is None or self.sharing == 1:
                return
            fewer = [n for n in range(self.sharing - 1, 0, -1) if replace(smallest, sharing=n).within(budget, spec)]
            if fewer:
                do = f"codec.sharing={fewer[0]}"
                raise refuse("codec.sharing", self.sharing, f"at most {fewer[0]} hallucinators within {budget}", do)

        def build(self, spec: Spec, rng: torch.Generator) -> Haba:
            return Haba(self, spec, rng)

    def __init__(self, config: Config, spec: Spec, rng: torch.Generator) -> None:
        super().__init__(config, spec, {"base": config.bases or 0, "hallucinator": config.sharing or 0})
        shapes = {name: shape for name, (shape, _) in config.shapes(spec).items()}
        self.bases = normal(rng, shapes["bases"])
        near = NOISE if config.near else 1.0
        self.enc = normal(rng, shapes["enc"], near * math.prod(shapes["enc"][2:]) ** -0.5)
        self.dec = normal(rng, shapes["dec"], near * math.prod(shapes["dec"][2:]) ** -0.5)
        self.enc_bias, self.dec_bias = normal(rng, shapes["enc_bias"], 0.0), normal(rng, shapes["dec_bias"], 0.0)
        self.sigma, self.mu = normal(rng, shapes["sigma"], 0.0), normal(rng, shapes["mu"], 0.0)
        with torch.no_grad():
            self.sigma.add_(1)
            if config.near:
                for c in range(spec.shape[0]):
                    self.enc[:, c, min(c, self.enc.shape[2] - 1), 1, 1] += 1
                    self.dec[:, c, c, 1, 1] += 1

    def images(self, index_N: Tensor) -> Tensor:
        hallucinators = self.axes["hallucinator"]
        base_N, style_N = index_N // hallucinators, index_N % hallucinators
        used, parts, places = style_N.unique().tolist(), [], []
        for j in used:
            place = (style_N == j).nonzero().flatten()
            parts.append(self.hallucinate(self.bases[base_N[place].to(self.bases.device)], j))
            places.append(place)
        if len(used) == 1:
            return parts[0]
        return torch.cat(parts)[torch.cat(places).argsort().to(self.bases.device)]

    def hallucinate(self, base_NCHW: Tensor, j: int) -> Tensor:
        """Both convolutions as plain ones: with so few channels a transposed one takes several times as long."""
        if base_NCHW.shape[-2:] != self.spec.shape[-2:]:
            base_NCHW = F.interpolate(base_NCHW, size=self.spec.shape[-2:], mode="bilinear", align_corners=False)
        x = self.sigma[j] * conv(base_NCHW, self.enc[j], self.enc_bias[j], 0) + self.mu[j]
        image_NCHW: Tensor = conv(x, turned(self.dec[j]), self.dec_bias[j], 2)
        return image_NCHW

    @property
    def full_batch(self) -> int:
        """All bases, under one hallucinator."""
        return self.axes["base"]

    def draws(self, rng: torch.Generator, n: int, batches: int) -> list[Tensor]:
        """The bases walked through in random order, each minibatch of n under one random hallucinator."""
        styles = self.axes["hallucinator"]
        style = torch.randint(styles, (batches,), generator=rng)
        return [base_N * styles + style[i] for i, base_N in enumerate(walk(self.axes["base"], n, batches, rng))]

    def begin(self, take: Take, rng: torch.Generator) -> None:
        """Bases are real images, shrunk; with fewer channels, the first ones' mean over the channels."""
        k, rank = self.spec.classes, self.config.rank
        for c in range(k):
            x = take(c, self.units_of(c)).to(self.bases)
            x = (
                F.interpolate(x, size=self.bases.shape[-2:], mode="area")
                if x.shape[-2:] != self.bases.shape[-2:]
                else x
            )
            if rank < x.shape[1]:
                x = torch.cat([x[:, : rank - 1], x[:, rank - 1 :].mean(1, keepdim=True)], 1)
            self.bases[c::k] = x


def turned(kernel: Tensor) -> Tensor:
    """The kernel with which a plain convolution undoes the way of this one."""
    return kernel.transpose(0, 1).flip(2, 3)


class Conv(torch.autograd.Function):
    """A 3 x 3 convolution whose gradient with respect to its input is a plain convolution, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.padding = padding
        return F.conv2d(x, kernel, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, kernel = ctx.saved_tensors
        back = F.conv2d(grad, turned(kernel), padding=2 - ctx.padding)
        return back, conv2d_weight(x, kernel.shape, grad, padding=ctx.padding), grad.sum((0, 2, 3)), None


conv: Any = Conv.apply


AXES = ("hallucinator", "kernel")


class Contrast(Term):
    asks: ClassVar[frozenset[str]] = frozenset()

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Weights and rates as released."""

        weight: float = 0.1
        task: float = 1.0
        pull: float = 0.1
        supervised: float = 0.1
        temperature: float = 0.07
        batch: int = 64
        """Images under two alternatives each."""
        lr: float = 1e-3
        """The rival's, under SGD."""
        momentum: float = 0.9
        augment: AugmentConfig = field(default_factory=AugmentConfig)

        def __post_init__(self) -> None:
            for name in ("weight", "task", "pull", "supervised"):
                if getattr(self, name) < 0:
                    raise refuse(f"contrast.{name}", getattr(self, name), "0 or more")
            for name in ("temperature", "lr", "batch"):
                if not getattr(self, name) > 0:
                    raise refuse(f"contrast.{name}", getattr(self, name), "above 0")

        def build(self, inputs: Inputs, codec: Codec) -> Contrast:
            return Contrast(self, inputs, codec)

    def __init__(self, config: Config, inputs: Inputs, codec: Codec) -> None:
        super().__init__()
        self.axis = next((axis for axis in AXES if codec.axes.get(axis, 1) > 1), "")
        if not self.axis:
            allowed = f"a codec with two or more along one of its axes {' | '.join(AXES)}"
            raise refuse("contrast", dict(codec.axes), allowed, "codec=haba, or drop the term")
        self.config, self.inputs = config, inputs
        self.weigh(config.weight)
        self.augment = config.augment.build()
        self.rival = nn.Parameter(inputs.net.init(generator(inputs.seed, "rival")))

    def players(self) -> list[Player]:
        c = self.config
        return [Player("rival", (self.rival,), optimiser=OptimiserConfig(name="sgd", lr=c.lr, momentum=c.momentum))]

    def pair(self, codec: Codec, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Flat indices of the same images under two different alternatives."""
        lengths = list(codec.axes.values())
        place = list(codec.axes).index(self.axis)
        count, after = lengths[place], math.prod(lengths[place + 1 :])
        index_N = torch.randperm(len(codec), generator=rng)[: self.config.batch]
        first_N = index_N // after % count
        second_N = (first_N + torch.randint(1, count, first_N.shape, generator=rng)) % count
        return index_N, index_N + (second_N - first_N) * after

    def value(self, codec: Codec, item: Item, match: Match) -> Match:
        rng = generator(item.seed, "contrast")
        pair = self.pair(codec, rng)
        decoded = [codec.decode(index_N) for index_N in pair]
        images = torch.cat([x for x, _ in decoded])
        targets = torch.cat([y for _, y in decoded]).detach()
        views = self.augment(images, self.augment.draw(rng, len(images), tuple(images.shape)))
        alike = self._alike(views, self.rival.detach())
        loss = self._rival_loss(views.detach(), targets)
        return Match((1 + alike) / 2, {"contrast": alike.detach(), "rival": loss.detach()}, losses={"rival": loss})

    def _alike(self, views: Tensor, rival_P: Tensor) -> Tensor:
        """Mean cosine between an image's two embeddings."""
        first, second = self._embed(views, rival_P).chunk(2)
        return (first * second).sum(1).mean()

    def _embed(self, views: Tensor, rival_P: Tensor) -> Tensor:
        return F.normalize(self.inputs.net.features(rival_P, views)[-1].flatten(1), dim=1)

    def _rival_loss(self, views: Tensor, targets_NK: Tensor) -> Tensor:
        c = self.config
        features = self.inputs.net.features(self.rival, views)[-1]
        e_ND = F.normalize(features.flatten(1), dim=1)
        first, second = e_ND.chunk(2)
        task = F.cross_entropy(self.inputs.net.logits(self.rival, features), targets_NK)
        apart = (1 - (first * second).sum(1)).mean() / 2
        total: Tensor = c.task * task + c.pull * apart
        return total + c.supervised * supervised_contrast(e_ND, targets_NK.argmax(1), c.temperature)


def supervised_contrast(e_ND: Tensor, label_N: Tensor, temperature: float) -> Tensor:
    """Khosla et al., 2020: images of one class are positives of each other. Rows without a positive are left out."""
    own = torch.eye(len(e_ND), dtype=torch.bool, device=e_ND.device)
    log_NN = (e_ND @ e_ND.T / temperature).masked_fill(own, -torch.inf).log_softmax(1)
    positive_NN = (label_N[:, None] == label_N) & ~own
    count_N = positive_NN.sum(1)
    total_N = log_NN.masked_fill(~positive_NN, 0.0).sum(1)
    return -(total_N[count_N > 0] / count_N[count_N > 0]).mean()
