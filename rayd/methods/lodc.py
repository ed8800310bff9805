"""LoDC, low-rank decomposition of each image. Yang et al., NeurIPS 2023, openreview Murj6wcjRw (code).

    X_i = A_i B_i per channel,   A_i [C, H, r],  B_i [C, r, W];   U * C * r * (H + W) floats

The release's LoMTT has one configuration, CIFAR-10 at IPC 1 (80 images of rank 2, no ZCA, starts below 5, SGD 1000 with
momentum 0.5); its inner loop at any other cell, and Adam on the factors, are ours. What we changed: images may start as
truncated SVDs of real ones (A = U sqrt(S), B = sqrt(S) V^T), where the release starts from noise; noise has unit variance
(the release's has variance r); the factors are what is saved, where the release saves the product; the over-budget cells
of its tables (MNIST, r = 2 and 8) are not reproduced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rayd.data.images import Spec
from rayd.distill.budget import Budget, Shapes
from rayd.distill.codec import Factorised, Take
from rayd.distill.fit import CodecOptions, check_rank, grow
from rayd.errors import refuse


class Lodc(Factorised):
    @dataclass(frozen=True, kw_only=True)
    class Config(CodecOptions):
        """rank: of each channel of each image; a sixteenth of the side by default (2 at 32 px, 4 at 64 px, as
        published). sharing: none, each image has its own factors."""

        images: int | None = None
        """In all; classes in turn."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.sharing is not None:
                raise refuse(
                    "codec.sharing", self.sharing, "null: nothing is shared here", "codec=lss shares one factor"
                )

        @classmethod
        def resolved(cls) -> tuple[str, ...]:
            return ("rank", "images")

        def shapes(self, spec: Spec) -> Shapes:
            (channels, height, width), n, r = spec.shape, self.images or 0, self.rank or 0
            return {
                "core": ((n, 1, channels, r, width), "factors"),
                "rows": ((n, channels, r, height), "factors"),
            }

        def slots(self, spec: Spec) -> int:
            return self.images or 0

        decoded = slots

        def resolve(self, budget: Budget, spec: Spec) -> Lodc.Config:
            rank = check_rank(self.rank or max(1, min(spec.shape[-2:]) // 16), spec)
            config = replace(self, rank=rank)
            return config if self.images else grow(config, "images", budget, spec, spec.classes)

        def build(self, spec: Spec, rng: torch.Generator) -> Lodc:
            return Lodc(self, spec, {"image": self.images or 0}, self.shapes(spec), rng)

    def address(self, index_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return index_N, index_N, torch.zeros_like(index_N)

    def begin(self, take: Take, rng: torch.Generator) -> None:
        assert self.rows is not None
        k = self.spec.classes
        for c in range(k):
            x_NCHW = take(c, self.units_of(c)).to(self.core)
            left, s, right = torch.linalg.svd(x_NCHW, full_matrices=False)
            root = s[..., : self.config.rank].sqrt()[..., None]
            self.rows[c::k] = left.mT[..., : self.config.rank, :] * root
            self.core[c::k, 0] = right[..., : self.config.rank, :] * root
