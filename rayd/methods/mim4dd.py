"""Mutual information between the real and the synthetic set. Shang et al., NeurIPS 2023, arXiv:2312.16627.

    - weight * mean_l I_l,   I_l = mean_j [ log mean_{i: y_i = y_j} exp u_ij - log mean_i exp u_ij ]
    u_ij = <a_i, b_j> / temperature,   a, b: features of block l of real image i and synthetic image j

I_l is the contrastive (InfoNCE) lower bound in nats, at most log K for K equal classes: positives share the class,
negatives do not. The paper's critic, layers, temperature and weight are not public: our design, after its abstract.
A feature is a block's output, pooled to at most 4 x 4 (instance norm leaves almost nothing in a mean over all pixels),
less its mean over the real images, of length 1. A learned projection (`width`) descends the same loss, which tightens
the bound; without one there is nothing to learn, which suits networks that change every step.

R real and S synthetic images, N of either, D features of a block, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayd.distill.classwise import BLOCK
from rayd.distill.codec import rank_within_group
from rayd.distill.contract import Codec, Inputs, Item, Match, OptimiserConfig, Player, Term
from rayd.distill.unroll import DTYPES
from rayd.errors import refuse
from rayd.machine import compiled
from rayd.seeds import generator

GRID = 4


def bound(scores_RS: Tensor, positive_RS: Tensor) -> Tensor:
    """The lower bound in nats: for every column, how far its positives stand out of all rows."""
    of_class_S = scores_RS.masked_fill(~positive_RS, -math.inf).logsumexp(0) - positive_RS.sum(0).log()
    of_all_S = scores_RS.logsumexp(0) - math.log(len(scores_RS))
    return (of_class_S - of_all_S).mean()


def pooled(features: list[Tensor]) -> list[Tensor]:
    """Every block's output as one vector an image; what has no places of its own (an embedding) is left out."""
    blocks = [f.float() for f in features if f.ndim == 4]
    return [F.adaptive_avg_pool2d(f, min(GRID, f.shape[-1])).flatten(1) for f in blocks]


class Mim4dd(Term):
    asks: ClassVar[frozenset[str]] = frozenset({"theta", "views", "labels", "real_images", "real_labels"})
    multiclass: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        weight: float | None = None
        """Nats against the objective's own unit (100 to 2,000 served DM alike); null: it follows from `ratio`."""
        ratio: float = 0.25
        """Of the term's gradient to the objective's, at the first step."""
        temperature: float = 0.1
        batch_real: int = 64
        """Real images of each class in the contrast, out of those that the objective matches."""
        width: int = 0
        """Of a learned linear projection of each block; 0: none."""
        lr: float = 0.001
        """Adam's, of the projections."""

        def __post_init__(self) -> None:
            if self.weight is not None and not self.weight >= 0:
                raise refuse("mim4dd.weight", self.weight, "at least 0, or null for `ratio`")
            if not self.ratio > 0:
                raise refuse("mim4dd.ratio", self.ratio, "above 0", "mim4dd.weight=0 turns the term off")
            if not self.temperature > 0:
                raise refuse("mim4dd.temperature", self.temperature, "above 0")
            if self.batch_real < 1 or self.width < 0 or not self.lr > 0:
                raise refuse("mim4dd", self, "batch_real at least 1, width at least 0, lr above 0")

        def build(self, inputs: Inputs, codec: Codec) -> Mim4dd:
            return Mim4dd(self, inputs)

    def __init__(self, config: Config, inputs: Inputs) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs
        self.weigh(config.weight, config.ratio)
        dtype = DTYPES[inputs.precision]

        def vectors(theta_P: Tensor, images_NCHW: Tensor) -> list[Tensor]:
            images = images_NCHW.to(dtype).contiguous(memory_format=torch.channels_last)
            return pooled(inputs.net.features(theta_P.to(dtype), images))

        with torch.no_grad():
            widths = [v.shape[1] for v in vectors(torch.zeros(inputs.net.size), torch.zeros(1, *inputs.spec.shape))]
        if not widths:
            raise refuse("method.terms", "mim4dd", "a network with convolutional blocks", "choose net.name=convnet")
        rng = generator(inputs.seed, "mim4dd")
        self.heads = nn.ParameterList(
            nn.Parameter(torch.randn(config.width, d, generator=rng) / math.sqrt(d)) for d in widths if config.width
        ).to(inputs.device)
        self._vectors = compiled(vectors, inputs.device, inputs.compiled)

    def players(self) -> list[Player]:
        if not self.config.width:
            return []
        return [Player("mim4dd", tuple(self.heads), optimiser=OptimiserConfig(lr=self.config.lr, momentum=0.9))]

    def value(self, codec: Codec, item: Item, match: Match) -> Match:
        scene = match.scene
        chosen_R = self._chosen(scene["real_labels"])
        real_class_R, syn_class_S = scene["real_labels"][chosen_R], scene["labels"].detach().argmax(1)
        if len(real_class_R.unique()) < 2:
            raise refuse(
                "method.terms",
                "mim4dd",
                "items of at least two classes (a contrast needs negatives)",
                "set objective.classes_per_item=0",
            )
        with torch.no_grad():
            blocks = scene["real_images"][chosen_R].split(BLOCK.get(self.inputs.device.type, 1024))
            parts = [self._vectors(scene["theta"], block) for block in blocks]
        real = [torch.cat(layer) for layer in zip(*parts, strict=True)]
        syn = self._vectors(scene["theta"], scene["views"])
        positive_RS = real_class_R[:, None] == syn_class_S[None, :]
        bounds = torch.stack(
            [bound(self._scores(layer, a, b), positive_RS) for layer, (a, b) in enumerate(zip(real, syn, strict=True))]
        )
        return Match(-bounds.mean(), {"information": bounds.detach().mean()})

    def _chosen(self, class_R: Tensor) -> Tensor:
        """The first `batch_real` of each class; they come in random order already."""
        return (rank_within_group(class_R) < self.config.batch_real).nonzero().flatten()

    def _scores(self, layer: int, real_RD: Tensor, syn_SD: Tensor) -> Tensor:
        centre_D = real_RD.mean(0)
        real_RD, syn_SD = real_RD - centre_D, syn_SD - centre_D
        if self.config.width:
            real_RD, syn_SD = real_RD @ self.heads[layer].mT, syn_SD @ self.heads[layer].mT
        return F.normalize(real_RD, dim=1) @ F.normalize(syn_SD, dim=1).mT / self.config.temperature
