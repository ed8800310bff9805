"""The networks by name: ConvNet at any depth, width and normalisation, and the zoo for cross-architecture tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor

from rayd.choices import plugins
from rayd.data.images import Spec
from rayd.errors import refuse
from rayd.nets.layers import Moments, Net, NetLayout, Scope, Side, halve
from rayd.nets.zoo import VGG11, AlexNet, ResNet18, ResNet50, ViT
from rayd.schema import DERIVED, read

__all__ = ["ConvNet", "Moments", "Net", "NetConfig"]

ZOO: dict[str, Callable[[NetConfig, Spec], Net]] = {
    "resnet18": ResNet18,
    "resnet50": ResNet50,
    "vgg11": VGG11,
    "alexnet": AlexNet,
    "vit": ViT,
}
NAMES = ("convnet", *ZOO)


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """One network; `None` means what the papers use at the dataset's size."""

    name: str = "convnet"
    """convnet | resnet18 | resnet50 | vgg11 | alexnet | vit, or a network of the folder `methods`."""
    depth: int | None = None
    """Blocks of a ConvNet or layers of the ViT (ConvNet: 32 px 3, 64 px 4, 128 px 5, 256 px 6; 8 px 2)."""
    width: int | None = None
    """Channels of a ConvNet's block or AlexNet's first (128), a ResNet's or VGG's first stage (64), the ViT (192)."""
    norm: Literal["instance", "group", "batch", "none"] = "instance"
    """instance (group norm with one group a channel, as the field's code) | group (32 groups) | batch | none."""
    own: plugins.Own | None = field(default=None, metadata=DERIVED)
    """A network of one's own."""

    @classmethod
    def from_plain(cls, mapping: Mapping[str, Any], where: str = "net") -> NetConfig:
        return read(cls, mapping, where, {"own": plugins.own("nets", mapping.get("name"), NAMES)})

    def __post_init__(self) -> None:
        if self.own is None and self.name not in NAMES:
            near = get_close_matches(self.name, NAMES, n=1)
            raise refuse("net.name", self.name, " | ".join(NAMES), f"did you mean {near[0]}?" if near else "")
        for key in ("depth", "width"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise refuse(f"net.{key}", value, "a whole number of at least 1, or none for the default")
        if self.depth is not None and self.own is None and self.name not in ("convnet", "vit"):
            raise refuse("net.depth", self.depth, f"none for {self.name}, whose depth is its name")

    def build(self, spec: Spec) -> Net:
        if self.own is not None:
            net: Net = self.own.thing(self, spec)
            return net
        return ConvNet(self, spec) if self.name == "convnet" else ZOO[self.name](self, spec)


class ConvNet(Net):
    """Depth times [3x3 convolution, normalisation, ReLU, 2x2 average pooling], then one linear layer."""

    def __init__(self, config: NetConfig, spec: Spec) -> None:
        side = Side.of(spec)
        deepest = side.size.bit_length() - 1
        self.depth = config.depth or max(min(2, deepest), deepest - 2)
        if self.depth > deepest:
            raise refuse(
                "net.depth",
                self.depth,
                f"1 to {deepest} at {spec.shape[-1]} px",
                "every block halves the side, so a deeper net has nothing left to see",
            )
        self.padding = side.padding
        width = config.width or 128
        plan = NetLayout(config.norm)
        channels = side.channels
        for i in range(self.depth):
            plan.conv(f"conv{i}", channels, width, 3)
            plan.norm(f"norm{i}", width)
            channels = width
        plan.linear("head", width * (side.size >> self.depth) ** 2, spec.classes)
        super().__init__(config, spec, plan)

    def blocks(self, scope: Scope, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for i in range(self.depth):
            x = scope.conv(f"conv{i}", x, padding=self.padding if i == 0 else 1)
            x = halve(torch.relu(scope.norm(f"norm{i}", x)))
            features.append(x)
        return [*features, x.flatten(1)]
