"""A world small enough to reason about: classes that are easy to tell apart, a pool of networks, pixels as codec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayd.data.images import Images, Spec
from rayd.data.transform import Transform
from rayd.distill.budget import Shapes, Stored
from rayd.distill.contract import Codec, Player
from rayd.distill.fit import CodecOptions
from rayd.experts.trajectory import Segment
from rayd.nets.convnet import Net, NetConfig
from rayd.seeds import generator

CPU = torch.device("cpu")


@dataclass
class TinyWorld:
    """`per_class` images of each class: a class's own pattern and noise, in network space."""

    classes: int = 4
    per_class: int = 24
    shape: tuple[int, int, int] = (3, 8, 8)
    seed: int = 0
    experts: int = 3
    last_epoch: int = 2
    config: NetConfig = field(default_factory=lambda: NetConfig(depth=2, width=8))
    precision: str = "fp32"
    compiled: bool = False
    device: torch.device = CPU
    spoiled: bool = False
    """The experts' later epochs are no numbers."""

    def __post_init__(self) -> None:
        self.spec = Spec(self.shape, self.classes)
        self.net: Net = self.config.build(self.spec)
        self.transform = Transform("none", torch.zeros(self.shape[0]), torch.ones(self.shape[0]))
        rng = generator(self.seed, "tiny")
        self.labels_N = torch.arange(self.classes).repeat_interleave(self.per_class)
        patterns = torch.randn(self.classes, *self.shape, generator=rng)
        self.images_NCHW = patterns[self.labels_N] + 0.5 * torch.randn(len(self.labels_N), *self.shape, generator=rng)

    def members(self, c: int) -> Tensor:
        return (self.labels_N == c).nonzero().flatten()

    def real(self, index_N: Tensor) -> Tensor:
        return self.images_NCHW[index_N].to(self.device)

    def targets(self, index_N: Tensor) -> Tensor:
        return F.one_hot(self.labels_N[index_N], self.classes).float().to(self.device)

    def theta(self, expert: int, epoch: int) -> Tensor:
        start = self.net.init(generator(self.seed, "expert", expert))
        end = self.net.init(generator(self.seed, "expert end", expert))
        theta = torch.lerp(start, end, 0.3 * epoch / self.last_epoch).to(self.device)
        return theta * float("nan") if self.spoiled and epoch > 1 else theta

    def segment(self, expert: int, first: int, last: int) -> Segment:
        return Segment(self.theta(expert, first), self.theta(expert, last), expert, first, last)

    def take(self, c: int, n: int) -> Tensor:
        return self.real(self.members(c)[torch.arange(n) % self.per_class])


class TinyPixels(Codec):
    """`ipc` images of each class, one parameter, hard labels."""

    @dataclass(frozen=True, kw_only=True)
    class Config(CodecOptions):
        ipc: int = 2

        def shapes(self, spec: Spec) -> Shapes:
            return {"pixels": ((self.decoded(spec), *spec.shape), "pixels")}

        def decoded(self, spec: Spec) -> int:
            return spec.classes * self.ipc

        def build(self, spec: Spec, rng: torch.Generator) -> TinyPixels:
            return TinyPixels(TinyWorld(spec.classes, shape=spec.shape), self.ipc)

    def __init__(self, inputs: TinyWorld, ipc: int = 2, start: Callable[[int, int], Tensor] | None = None) -> None:
        super().__init__()
        self.spec = inputs.spec
        self.axes = {"class": inputs.classes, "image": ipc}
        rng = generator(inputs.seed, "pixels")
        blank = torch.randn(inputs.classes * ipc, *inputs.shape, generator=rng)
        taken = torch.cat([start(c, ipc) for c in range(inputs.classes)]) if start else blank
        self.pixels = nn.Parameter(taken.clone().to(inputs.device))

    def __len__(self) -> int:
        return len(self.pixels)

    def classes(self) -> Tensor:
        return torch.arange(self.axes["class"]).repeat_interleave(self.axes["image"])

    def decode(self, index_N: Tensor) -> tuple[Tensor, Tensor]:
        labels = F.one_hot(self.classes()[index_N], self.axes["class"]).float()
        return self.pixels[index_N.to(self.pixels.device)], labels.to(self.pixels.device)

    def players(self) -> list[Player]:
        return [Player("pixels", (self.pixels,))]

    def stored(self) -> dict[str, Stored]:
        return {"pixels": Stored(self.pixels, "pixels")}


def tiny(n: int = 60, size: int = 8, classes: int = 3, channels: int = 1, seed: int = 0) -> Images:
    """Images whose class is where they are bright."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    pixels = torch.randint(0, 90, (n, channels, size, size), generator=rng)
    for c in range(classes):
        pixels[labels == c, :, c * size // classes : (c + 1) * size // classes] += 120
    content = f"tiny-{n}-{size}-{classes}-{channels}-{seed}"
    names = tuple(f"class {c}" for c in range(classes))
    return Images(pixels.to(torch.uint8), labels, names, "tiny", {"content": content, "name": "tiny"})
