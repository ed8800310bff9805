"""Plain images: what the field stores. Wang et al., arXiv:1811.10959.

Stored: pixels [U, C, H, W]; U * C * H * W floats. No dials. `clamp` projects onto legal pixels after each step (the
bounds of the transform; whitened space has none).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.distill.budget import Budget, Shapes
from rayd.distill.codec import Family, Take, normal
from rayd.distill.fit import CodecOptions, grow
from rayd.errors import refuse


class Pixel(Family):
    @dataclass(frozen=True, kw_only=True)
    class Config(CodecOptions):
        """rank and sharing: none."""

        images: int | None = None
        """In all; classes in turn."""
        clamp: bool = False
        """Keep pixels within [0, 1] (in raw terms)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("rank", "sharing"):
                if getattr(self, name) is not None:
                    raise refuse(f"codec.{name}", getattr(self, name), "null: pixels have no dials", "codec=lodc has")

        @classmethod
        def resolved(cls) -> tuple[str, ...]:
            return ("images",)

        def shapes(self, spec: Spec) -> Shapes:
            return {"pixels": ((self.images or 0, *spec.shape), "pixels")}

        def slots(self, spec: Spec) -> int:
            return self.images or 0

        decoded = slots

        def resolve(self, budget: Budget, spec: Spec) -> Pixel.Config:
            return grow(self, "images", budget, spec, spec.classes)

        def build(self, spec: Spec, rng: torch.Generator) -> Pixel:
            return Pixel(self, spec, rng)

    def __init__(self, config: Config, spec: Spec, rng: torch.Generator) -> None:
        super().__init__(config, spec, {"image": config.images or 0})
        self.pixels = normal(rng, (len(self), *spec.shape))

    def images(self, index_N: Tensor) -> Tensor:
        return self.pixels.index_select(0, index_N.to(self.pixels.device))

    def begin(self, take: Take, rng: torch.Generator) -> None:
        for c in range(self.spec.classes):
            self.pixels[c :: self.spec.classes] = take(c, self.units_of(c)).to(self.pixels)

    @torch.no_grad()
    def project(self, transform: Transform) -> None:
        if not self.config.clamp:
            return
        bounds = transform.bounds()
        if bounds is None:
            raise refuse("codec.clamp", True, "false in whitened space, where [0, 1] is no box", "transform=normalise")
        low, high = (torch.as_tensor(b).to(self.pixels)[:, None, None] for b in bounds)
        self.pixels.copy_(self.pixels.clamp(low, high))
