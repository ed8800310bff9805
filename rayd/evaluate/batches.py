"""Images by index, and the batches a network sees of them: order, augmentation and mixing drawn from one seed.

Shapes: N images, B of a batch, S steps of a chunk, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.data.images import Images, Spec
from rayd.data.transform import Transform
from rayd.evaluate.recipe import Length, RecipeConfig
from rayd.nets.convnet import Net
from rayd.seeds import generator

RESIDENT = 2**30
"""A set is decoded once if its images take no more bytes than this, by batch otherwise."""
BLOCK = 512
"""Images decoded at a time."""
CHUNK = 2**25
"""Bytes of images prepared ahead: many steps of a small batch share one call of the augmentation."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images by index: what a network is trained on or tested with."""

    decode: Callable[[Tensor], tuple[Tensor, Tensor]]
    """index_N -> images in network space [N, C, H, W], label probabilities [N, K]"""
    classes_N: Tensor
    spec: Spec
    stored: int | None = None
    """Images that the set's numbers would fill as plain pixels; as many as it decodes to if not given."""
    device: torch.device | None = None
    """Where all its images lie, if they are decoded."""

    def __len__(self) -> int:
        return len(self.classes_N)

    @classmethod
    def of(cls, source: Any, transform: Transform | None = None) -> ImageSet:
        """Of a codec, an artifact's codec, Images (through `transform`), or an ImageSet."""
        if isinstance(source, ImageSet):
            return source
        if isinstance(source, Images):
            if transform is None:
                raise ValueError("Images need the transform into network space")
            return cls._of_images(source, transform)
        floats = sum(number.tensor.numel() for number in source.stored().values())
        return cls(source.decode, source.classes(), source.spec, max(1, round(floats / source.spec.floats)))

    @classmethod
    def _of_images(cls, images: Images, transform: Transform) -> ImageSet:
        """Pixels travel as they are, in 8 bits, and become floats where the transform is."""
        classes = images.spec.classes

        def decode(index_N: Tensor) -> tuple[Tensor, Tensor]:
            pixels, labels = (part[index_N].to(transform.device) for part in (images.pixels_NCHW, images.labels_N))
            return transform(pixels), F.one_hot(labels, classes).float()

        return cls(decode, images.labels_N, images.spec)

    @classmethod
    def tensors(cls, images_NCHW: Tensor, classes_N: Tensor, spec: Spec, targets_NK: Tensor | None = None) -> ImageSet:
        """Images in network space as they are."""
        targets = F.one_hot(classes_N, spec.classes).float() if targets_NK is None else targets_NK
        return cls(lambda index: (images_NCHW[index], targets[index]), classes_N.cpu(), spec, device=images_NCHW.device)

    @torch.no_grad()
    def resident(self, device: torch.device, limit: int = RESIDENT) -> ImageSet:
        """Decoded once, where it fits."""
        if self.device == device or len(self) * self.spec.floats * 4 > limit:
            return self
        images = torch.empty(len(self), *self.spec.shape, device=device)
        targets = torch.empty(len(self), self.spec.classes, device=device)
        for index in torch.arange(len(self)).split(BLOCK):
            place = slice(int(index[0]), int(index[-1]) + 1)
            images[place], targets[place] = self.decode(index)
        return replace(ImageSet.tensors(images, self.classes_N, self.spec, targets), stored=self.stored)

    def length(self, recipe: RecipeConfig) -> Length:
        """How long a network is trained on it."""
        return recipe.length(len(self), self.stored or len(self))


def batches(
    recipe: RecipeConfig, source: ImageSet, seed: int, device: torch.device, teacher: tuple[Net, Tensor] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps' batches of one network, prepared a chunk at a time."""
    size = min(recipe.batch, len(source))
    shape = (size, *source.spec.shape)
    orders, draws = generator(seed, "batch"), generator(seed, "augment")
    mixes = generator(seed, "mix")
    augment = recipe.augment.build() if recipe.augment else None
    left = torch.empty(0, dtype=torch.int64)
    total, chunk = source.length(recipe).steps, max(1, CHUNK // (size * source.spec.floats * 4))
    for begin in range(0, total, chunk):
        steps = min(chunk, total - begin)
        while len(left) < steps * size:
            left = torch.cat([left, torch.randperm(len(source), generator=orders)])
        index, left = left[: steps * size], left[steps * size :]
        images, targets = (part.to(device) for part in source.decode(index))
        if recipe.labels == "hard":
            targets = F.one_hot(source.classes_N[index], source.spec.classes).float().to(device)
        images = images.unflatten(0, (steps, size))
        if augment is not None:
            images = augment.each(images, [augment.draw(draws, size, shape) for _ in range(steps)])
        for x, y in zip(images, targets.unflatten(0, (steps, size)), strict=True):
            x, y = _mixed(recipe, x, y, mixes)
            if recipe.labels == "teacher" and teacher is not None:
                y = (teacher[0](teacher[1].to(device), x) / recipe.temperature).softmax(1)
            yield x, y


def _mixed(recipe: RecipeConfig, x: Tensor, y: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al., 2019, beta 1) on its share of the batches, mixup (Zhang et al., 2018) on all, where asked."""
    if recipe.cutmix and float(torch.rand((), generator=rng)) < recipe.cutmix:
        other, (h, w) = torch.randperm(len(x), generator=rng).to(x.device), x.shape[2:]
        keep, *centre = torch.rand(3, generator=rng).tolist()
        half = [int(side * (1 - keep) ** 0.5) // 2 for side in (h, w)]
        (top, bottom), (left, right) = (
            (max(int(c * side) - r, 0), min(int(c * side) + r, side))
            for c, side, r in zip(centre, (h, w), half, strict=True)
        )
        x = x.clone()
        x[:, :, top:bottom, left:right] = x[other][:, :, top:bottom, left:right]
        share = (bottom - top) * (right - left) / (h * w)
        y = torch.lerp(y, y[other], share)
    if recipe.mixup:
        a, b = torch._standard_gamma(torch.full((2,), recipe.mixup), generator=rng).tolist()
        other = torch.randperm(len(x), generator=rng).to(x.device)
        share = b / max(a + b, 1e-12)
        x, y = torch.lerp(x, x[other], share), torch.lerp(y, y[other], share)
    return x, y
