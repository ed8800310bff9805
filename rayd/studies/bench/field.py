"""ConvNet-3 as the field writes it: torch.nn modules, whose instance norm is one fused operation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

SIDE, CLASSES = 32, 10


def convnet(width: int, depth: int = 3, side: int = SIDE) -> nn.Sequential:
    """Its last layer is the linear one; the layers before it are the features."""
    layers: list[nn.Module] = []
    for i in range(depth):
        channels = width if i else 3
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (side >> depth) ** 2, CLASSES))


def started(net: nn.Sequential, theta_P: Tensor) -> nn.Sequential:
    """With the parameters of our network, whose order is the same."""
    net.to(theta_P.device)
    vector_to_parameters(theta_P.detach().clone(), net.parameters())
    return net


class Convolutions:
    """The convolutions of a ConvNet-3 alone, forward and backward: no norm, no pooling, no optimiser, no batches."""

    def __init__(self, width: int, batch: int, dtype: torch.dtype) -> None:
        channels, sides = (3, width, width), (SIDE, SIDE // 2, SIDE // 4)
        layout = torch.channels_last
        self.layers = [nn.Conv2d(c, width, 3, padding=1).to(dtype).to(memory_format=layout) for c in channels]
        inputs = [torch.randn(batch, c, side, side, dtype=dtype) for c, side in zip(channels, sides, strict=True)]
        self.inputs = [x.to(memory_format=layout).requires_grad_(i > 0) for i, x in enumerate(inputs)]

    def __call__(self) -> None:
        for layer, x in zip(self.layers, self.inputs, strict=True):
            leaves = [*layer.parameters(), *([x] if x.requires_grad else [])]
            out = layer(x)
            torch.autograd.grad(out, leaves, torch.ones_like(out))
