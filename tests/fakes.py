"""A plain-pixel codec for tests that must not depend on the real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayd.budget import Stored
from rayd.data import Images, Spec


class Pixels(nn.Module):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        ipc: int = 1

        def build(self, spec: Spec, rng: torch.Generator) -> Pixels:
            return Pixels(self, spec, rng)

    def __init__(self, config: Config, spec: Spec, rng: torch.Generator) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        self.axes = {"class": spec.classes, "image": config.ipc}
        self.images = nn.Parameter(torch.randn(spec.classes * config.ipc, *spec.shape, generator=rng))

    def __len__(self) -> int:
        return len(self.images)

    def classes(self) -> Tensor:
        return torch.arange(self.spec.classes).repeat_interleave(self.config.ipc)

    def of_class(self, c: int) -> Tensor:
        return (self.classes() == c).nonzero().flatten()

    def decode(self, index_N: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[index_N], torch.nn.functional.one_hot(self.classes()[index_N], self.spec.classes).float()

    def encode(self, take: Callable[[int, int], Tensor], rng: torch.Generator) -> None:
        with torch.no_grad():
            self.images.copy_(torch.cat([take(c, self.config.ipc) for c in range(self.spec.classes)]))

    def stored(self) -> dict[str, Stored]:
        return {"images": Stored(self.images, "pixels")}


def tiny(n: int = 60, size: int = 8, classes: int = 3, channels: int = 1, seed: int = 0) -> Images:
    """Images whose class is where they are bright."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    pixels = torch.randint(0, 90, (n, channels, size, size), generator=rng)
    for c in range(classes):
        pixels[labels == c, :, c * size // classes : (c + 1) * size // classes] += 120
    names = tuple(f"class {c}" for c in range(classes))
    return Images(pixels.to(torch.uint8), labels, names, "tiny", {"content": f"tiny-{n}-{size}-{seed}", "name": "tiny"})
