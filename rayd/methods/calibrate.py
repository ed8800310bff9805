"""NCFM's calibration: a trained network must recognise the synthetic images (Wang et al., CVPR 2025, release only).

    + weight * sum_c mean_{j in c} CE(f_trained(A(s_j)), y_j)

The trained network is the end of the expert whose pool network the step matches under. The release takes it in a second
optimiser step of its own; here both share one, so `weight` is against the objective's `scale`.

N synthetic images of an item, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.data.augment import AugmentConfig
from rayd.distill.contract import Codec, Inputs, Item, Match, Term
from rayd.distill.unroll import DTYPES
from rayd.errors import refuse
from rayd.machine import compiled
from rayd.seeds import generator


class Calibrate(Term):
    asks: ClassVar[frozenset[str]] = frozenset({"images", "labels", "teacher"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        weight: float = 1.0
        augment: AugmentConfig = field(
            default_factory=lambda: AugmentConfig(ops=("color", "crop", "cutout"), policy="always", share="batch")
        )

        def __post_init__(self) -> None:
            if not self.weight >= 0:
                raise refuse("calibrate.weight", self.weight, "at least 0")

        def build(self, inputs: Inputs, codec: Codec) -> Calibrate:
            return Calibrate(self, inputs)

    def __init__(self, config: Config, inputs: Inputs) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs
        self.augment = config.augment.build()
        dtype = DTYPES[inputs.precision]

        def losses(theta_P: Tensor, images_NCHW: Tensor, targets_NK: Tensor) -> Tensor:
            logits_NK = inputs.net(theta_P.to(dtype), images_NCHW.to(dtype)).float()
            return -(targets_NK * F.log_softmax(logits_NK, dim=1)).sum(1)

        self._losses = compiled(losses, inputs.device, inputs.compiled)

    def forward(self, codec: Codec, item: Item, match: Match) -> Match:
        if "teacher" not in match.scene:
            allowed = "an objective with a pool of trained networks"
            raise refuse("method.terms", "calibrate", allowed, "set objective.pool above 0")
        images_NCHW, labels_NK = match.scene["images"], match.scene["labels"]
        rng = generator(item.seed, "calibrate")
        draw = self.augment.draw(rng, len(images_NCHW), self.inputs.spec.shape).to(self.inputs.device)
        losses_N = self._losses(match.scene["teacher"], self.augment(images_NCHW, draw), labels_NK)
        class_N = labels_NK.detach().argmax(1)
        share_N = 1 / torch.bincount(class_N, minlength=labels_NK.shape[1])[class_N]
        value = (losses_N * share_N).sum()
        metrics = match.metrics | {"calibration": value.detach() / len(class_N.unique())}
        return replace(match, value=match.value + self.config.weight * value, metrics=metrics)
