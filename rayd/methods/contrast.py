"""HaBa's adversarial contrast. Liu et al., NeurIPS 2022, arXiv:2210.16774, as released.

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
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayd.data.augment import AugmentConfig
from rayd.distill.contract import Codec, Inputs, Item, Match, Player, Term
from rayd.errors import refuse
from rayd.seeds import generator

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
        self.augment = config.augment.build()
        self.rival = nn.Parameter(inputs.net.init(generator(inputs.seed, "rival")).to(inputs.device))

    def players(self) -> list[Player]:
        c = self.config
        return [Player("rival", (self.rival,), lr=c.lr, optimiser="sgd", momentum=c.momentum)]

    def pair(self, codec: Codec, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Flat indices of the same images under two different alternatives."""
        lengths = list(codec.axes.values())
        place = list(codec.axes).index(self.axis)
        count, after = lengths[place], math.prod(lengths[place + 1 :])
        index_N = torch.randperm(len(codec), generator=rng)[: self.config.batch]
        first_N = index_N // after % count
        second_N = (first_N + torch.randint(1, count, first_N.shape, generator=rng)) % count
        return index_N, index_N + (second_N - first_N) * after

    def forward(self, codec: Codec, item: Item, match: Match) -> Match:
        rng = generator(item.seed, "contrast")
        pair = self.pair(codec, rng)
        decoded = [codec.decode(index_N) for index_N in pair]
        images = torch.cat([x for x, _ in decoded])
        targets = torch.cat([y for _, y in decoded]).detach()
        views = self.augment(images, self.augment.draw(rng, len(images), tuple(images.shape)).to(images.device))
        alike = self._alike(views, self.rival.detach())
        loss = self._rival_loss(views.detach(), targets)
        metrics = match.metrics | {"contrast": alike.detach(), "rival": loss.detach()}
        value = match.value + self.config.weight * (1 + alike) / 2
        return replace(match, value=value, metrics=metrics, losses=match.losses | {"rival": loss})

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
