"""Distribution matching. Zhao & Bilen, WACV 2023, arXiv:2110.04181.

    L = sum_c || mean_i f(A(x_i^c)) - mean_j f(A(s_j^c)) ||^2,   f: flattened last block of a fresh network every step

What we changed: the sum over classes is one optimiser step (the authors' own loop; their advice for large sets, a step
inside the loop, has other momentum dynamics). Batch norm is refused: our networks keep running statistics, and a fresh
network has none. The shared frame (items, seeds, blocks) is in classwise.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rayd.distill.classwise import Batch, Classwise, refuse_untrained_batch_norm
from rayd.distill.contract import Codec, Inputs, Item, Match


def mean_of_class(features_GmD: Tensor) -> Tensor:
    return features_GmD.mean(1)


class Distribution(Classwise):
    needs: ClassVar[frozenset[str]] = frozenset({"nets", "real"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Classwise.Config):
        def build(self, inputs: Inputs) -> Distribution:
            return Distribution(self, inputs)

    def __init__(self, config: Config, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        refuse_untrained_batch_norm(inputs)

    def forward(self, codec: Codec, item: Item, data: Batch) -> Match:
        theta_P = data.source.theta_P
        syn = self.synthetic(codec, item)
        real_GD = torch.stack([self.embed_real(theta_P, part).mean(0) for part in data.real_GnCHW])
        syn_GD = syn.by_class(mean_of_class, self.embed(theta_P, syn.views_NCHW))
        value = (real_GD - syn_GD).square().sum()
        return Match(value, {}, self.scene(data, theta_P, syn))
