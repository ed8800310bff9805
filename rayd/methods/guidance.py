"""NSD's guidance by the distribution of real samples. Yang et al., ECCV 2024, arXiv:2408.16236.

    + weight * mean_c || mean phi(A(real_c)) - mean phi(A(synthetic_c)) ||^2 / || mean phi(A(real_c)) ||^2

phi: the embedding before the classifier, of the network the item is at (an expert's start: already loaded). The paper's
formula could not be had; dividing by the real features' size, so that one weight serves every network, is ours.

Real and synthetic images get the same operations (siamese, as in DSA). `classes` of the classes, by the item's seed,
bound the cost. c classes looked at, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from rayd.data.augment import AugmentConfig, Draw
from rayd.distill.contract import Codec, Inputs, Item, Match, Term
from rayd.distill.unroll import DTYPES
from rayd.errors import refuse
from rayd.seeds import generator


class Guidance(Term):
    asks: ClassVar[frozenset[str]] = frozenset({"net", "theta"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        weight: float = 0.1
        """Against the objective's value."""
        classes: int = 10
        """Classes looked at in an item."""
        batch_real: int = 64
        """Real images of each."""
        batch_syn: int = 32
        """Synthetic images of each, at most."""
        augment: AugmentConfig = field(default_factory=AugmentConfig)

        def __post_init__(self) -> None:
            if not self.weight >= 0:
                raise refuse("guidance.weight", self.weight, "0 or more", "0 turns it off")
            for name in ("classes", "batch_real", "batch_syn"):
                if getattr(self, name) < 1:
                    raise refuse(f"guidance.{name}", getattr(self, name), "a whole number from 1")

        def build(self, inputs: Inputs, codec: Codec) -> Guidance:
            return Guidance(self, inputs)

    def __init__(self, config: Config, inputs: Inputs) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs
        self.augment = config.augment.build()

    def forward(self, codec: Codec, item: Item, match: Match) -> Match:
        if self.config.weight == 0:
            return match
        theta_P: Tensor = match.scene["theta"].detach()
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
        metrics = match.metrics | {"guidance": value.detach()}
        return replace(match, value=match.value + self.config.weight * value, metrics=metrics)

    def _means(self, theta_P: Tensor, images_NCHW: Tensor, draw: Draw, parts: list[Tensor]) -> Tensor:
        """Mean embedding of each class [c, D]."""
        views = self.augment(images_NCHW, draw.rows(0, len(images_NCHW)).to(images_NCHW.device))
        dtype = DTYPES[self.inputs.precision]
        embedding_ND = self.inputs.net.features(theta_P.to(dtype), views.to(dtype))[-1].float().flatten(1)
        return torch.stack([part.mean(0) for part in embedding_ND.split([len(part) for part in parts])])


def some(index: Tensor, n: int, rng: torch.Generator) -> Tensor:
    return index[torch.randperm(len(index), generator=rng)[:n]]
