"""The networks of cross-architecture tables: ResNet-18 and -50, VGG-11, AlexNet and a small ViT, at 28 to 256 px.

As the field's code has them at 32 px (AlexNet: Krizhevsky et al. 2012; VGG: arXiv 1409.1556; ResNet: 1512.03385; ViT:
2010.11929); at larger sizes the ResNets take the usual 7x7 stem and the heads average what is left of the image.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.data.images import Spec
from rayd.errors import refuse
from rayd.nets.layers import Net, NetLayout, Scope, Side, Slot

SMALLEST = 28


def _side(spec: Spec, name: str) -> Side:
    side = Side.of(spec)
    if side.size < SMALLEST:
        raise refuse(
            "net.name",
            name,
            f"convnet or vit at {side.size} px",
            f"{name} halves the image too often below {SMALLEST} px",
        )
    return side


class ResNet(Net):
    """Four stages of residual blocks; a 3x3 stem up to 64 px, a 7x7 one of stride 2 with max pooling above."""

    layers: ClassVar[tuple[int, ...]]
    expansion: ClassVar[int]
    kernels: ClassVar[tuple[int, ...]]
    """Of a block; the first 3x3 carries the stride."""

    def __init__(self, config: Any, spec: Spec) -> None:
        side = _side(spec, config.name)
        width = config.width or 64
        plan = NetLayout(config.norm)
        self.small, self.padding = side.size <= 64, side.padding
        plan.conv("stem", side.channels, width, 3 if self.small else 7, bias=False)
        plan.norm("stem.norm", width)
        channels = width
        for stage, count in enumerate(self.layers):
            for i in range(count):
                out = width * 2**stage
                self._declare(plan, f"{stage}.{i}", channels, out, stride=2 if stage and not i else 1)
                channels = out * self.expansion
        plan.linear("head", channels, spec.classes)
        super().__init__(config, spec, plan)

    def _declare(self, plan: NetLayout, name: str, c_in: int, c: int, stride: int) -> None:
        kernels = self.kernels
        sizes = [c_in, *[c] * (len(kernels) - 1), c * self.expansion]
        for i, k in enumerate(kernels):
            plan.conv(f"{name}.conv{i}", sizes[i], sizes[i + 1], k, bias=False)
            plan.norm(f"{name}.norm{i}", sizes[i + 1])
        if stride > 1 or c_in != sizes[-1]:
            plan.conv(f"{name}.skip", c_in, sizes[-1], 1, bias=False)
            plan.norm(f"{name}.skip.norm", sizes[-1])

    def _block(self, scope: Scope, name: str, x: Tensor, stride: int) -> Tensor:
        y, kernels = x, self.kernels
        for i, k in enumerate(kernels):
            y = scope.conv(f"{name}.conv{i}", y, stride if i == kernels.index(3) else 1, k // 2)
            y = scope.norm(f"{name}.norm{i}", y)
            y = torch.relu(y) if i < len(kernels) - 1 else y
        if f"{name}.skip.weight" in scope.views:
            x = scope.norm(f"{name}.skip.norm", scope.conv(f"{name}.skip", x, stride))
        return torch.relu(x + y)

    def blocks(self, scope: Scope, x: Tensor) -> list[Tensor]:
        x = scope.conv("stem", x, 1, self.padding) if self.small else scope.conv("stem", x, 2, 3)
        x = torch.relu(scope.norm("stem.norm", x))
        if not self.small:
            x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for stage, count in enumerate(self.layers):
            for i in range(count):
                x = self._block(scope, f"{stage}.{i}", x, stride=2 if stage and not i else 1)
            features.append(x)
        return [*features, x.mean((2, 3))]


class ResNet18(ResNet):
    layers, expansion = (2, 2, 2, 2), 1
    kernels = (3, 3)


class ResNet50(ResNet):
    layers, expansion = (3, 4, 6, 3), 4
    kernels = (1, 3, 1)


class VGG11(Net):
    """Eight 3x3 convolutions, pooled after 1, 2, 4, 6 and 8; what is left is averaged."""

    PLAN: ClassVar[tuple[tuple[int, bool], ...]] = (
        (1, True),
        (2, True),
        (4, False),
        (4, True),
        (8, False),
        (8, True),
        (8, False),
        (8, True),
    )

    def __init__(self, config: Any, spec: Spec) -> None:
        side = _side(spec, config.name)
        self.padding = side.padding
        width, channels = config.width or 64, side.channels
        plan = NetLayout(config.norm)
        for i, (times, _) in enumerate(self.PLAN):
            plan.conv(f"conv{i}", channels, width * times, 3)
            plan.norm(f"norm{i}", width * times)
            channels = width * times
        plan.linear("head", channels, spec.classes)
        super().__init__(config, spec, plan)

    def blocks(self, scope: Scope, x: Tensor) -> list[Tensor]:
        features = []
        for i, (_, pooled) in enumerate(self.PLAN):
            x = torch.relu(scope.norm(f"norm{i}", scope.conv(f"conv{i}", x, padding=self.padding if i == 0 else 1)))
            if pooled:
                x = F.max_pool2d(x, 2)
                features.append(x)
        return [*features, x.mean((2, 3))]


class AlexNet(Net):
    """Five convolutions with three max poolings, averaged to 4x4 above 32 px. The field's has no normalisation."""

    PLAN: ClassVar[tuple[tuple[int, int, bool], ...]] = (
        (128, 5, True),
        (192, 5, True),
        (256, 3, False),
        (192, 3, False),
        (192, 3, True),
    )

    def __init__(self, config: Any, spec: Spec) -> None:
        side = _side(spec, config.name)
        self.padding = side.padding
        scale, channels = (config.width or 128) / 128, side.channels
        plan = NetLayout(config.norm)
        for i, (width, k, _) in enumerate(self.PLAN):
            out = max(round(width * scale), 1)
            plan.conv(f"conv{i}", channels, out, k)
            plan.norm(f"norm{i}", out)
            channels = out
        plan.linear("head", channels * 16, spec.classes)
        super().__init__(config, spec, plan)

    def blocks(self, scope: Scope, x: Tensor) -> list[Tensor]:
        features = []
        for i, (_, k, pooled) in enumerate(self.PLAN):
            padding = k // 2 + (self.padding - 1 if i == 0 else 0)
            x = torch.relu(scope.norm(f"norm{i}", scope.conv(f"conv{i}", x, padding=padding)))
            if pooled:
                x = F.max_pool2d(x, 2)
                features.append(x)
        return [*features, F.adaptive_avg_pool2d(x, 4).flatten(1)]


class ViT(Net):
    """Patches of an eighth of the side, pre-norm blocks of width 192 with three heads, averaged tokens."""

    def __init__(self, config: Any, spec: Spec) -> None:
        channels, size, _ = spec.shape
        self.patch = next(p for p in range(max(size // 8, 1), size + 1) if size % p == 0)
        self.tokens = (size // self.patch) ** 2
        self.width, self.depth = config.width or 192, config.depth or 6
        self.heads = next(h for h in (max(self.width // 64, 1), 1) if self.width % h == 0)
        plan = NetLayout("none")
        plan.linear("patch", channels * self.patch**2, self.width)
        plan.params["position"] = Slot((self.tokens, self.width), "normal", 0.02)
        for i in range(self.depth):
            plan.scale(f"{i}.norm0", self.width)
            plan.linear(f"{i}.qkv", self.width, 3 * self.width)
            plan.linear(f"{i}.out", self.width, self.width)
            plan.scale(f"{i}.norm1", self.width)
            plan.linear(f"{i}.up", self.width, 4 * self.width)
            plan.linear(f"{i}.down", 4 * self.width, self.width)
        plan.scale("norm", self.width)
        plan.linear("head", self.width, spec.classes)
        super().__init__(config, spec, plan)

    def blocks(self, scope: Scope, x: Tensor) -> list[Tensor]:
        n, c, h, w = x.shape
        p = self.patch
        x = x.reshape(n, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        x = scope.linear("patch", x) + scope.views["position"]
        features = []
        for i in range(self.depth):
            x = x + self._attend(scope, i, scope.layer_norm(f"{i}.norm0", x))
            hidden = F.gelu(scope.linear(f"{i}.up", scope.layer_norm(f"{i}.norm1", x)))
            x = x + scope.linear(f"{i}.down", hidden)
            features.append(x.mT.unflatten(2, (h // p, w // p)))
        return [*features, scope.layer_norm("norm", x).mean(1)]

    def _attend(self, scope: Scope, i: int, x: Tensor) -> Tensor:
        """Written out, because the fused kernels do not differentiate twice."""
        q, k, v = scope.linear(f"{i}.qkv", x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1)
        return scope.linear(f"{i}.out", (weights @ v).transpose(1, 2).flatten(2))
