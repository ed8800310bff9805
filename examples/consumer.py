"""Train a network on a distilled set with `datasets`, torch and Pillow alone; rayd is not imported.

    python -m jobs.export artifact=zoo:nsd-cifar10-ipc1-cpu to=cifar10
    python examples/consumer.py cifar10 TEST

Both are folders, or names on the hub, with columns `image` and `label`; the part `test` of the second is scored.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor, nn

STEPS, BATCH, WIDTH = 300, 256, 128


def tensors(name: str, part: str) -> tuple[Tensor, Tensor]:
    rows = load_dataset(name, split=part)
    pixels = torch.stack([torch.from_numpy(np.array(image.convert("RGB"))) for image in rows["image"]])
    return pixels.permute(0, 3, 1, 2).float() / 255, torch.tensor(rows["label"])


def network(side: int, classes: int) -> nn.Sequential:
    """The field's ConvNet: blocks of convolution, instance norm, ReLU and pooling until 4 px are left."""
    layers: list[nn.Module] = []
    channels = 3
    while side >= 8:
        layers += [nn.Conv2d(channels, WIDTH, 3, padding=1), nn.GroupNorm(WIDTH, WIDTH), nn.ReLU(), nn.AvgPool2d(2)]
        channels, side = WIDTH, side // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, classes))


def main(train: str, test: str) -> None:
    torch.manual_seed(0)
    x, y = tensors(train, "train")
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    net = network(x.shape[-1], int(y.max()) + 1)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(STEPS):
        index = torch.randint(len(x), (min(BATCH, len(x)),))
        batch = (x[index] - mean) / std
        batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(3), batch)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(batch), y[index]).backward()
        optimiser.step()
    images, labels = tensors(test, "test")
    with torch.no_grad():
        right = [(net((part - mean) / std).argmax(1) == label).float() for part, label in
                 zip(images.split(BATCH), labels.split(BATCH), strict=True)]  # fmt: skip
    print(f"{len(x)} images, {STEPS} steps: test accuracy {100 * torch.cat(right).mean():.1f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
