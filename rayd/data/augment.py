"""The siamese augmentations in network space (DSA, arXiv 2102.08259, and IDC, arXiv 2205.14959).

`Augment` draws all its randomness beforehand on the CPU, so the same `Draw` gives the same augmentation of real and
synthetic images, in a replay, on any device.

Shapes: N images, C channels, H, W sides, D = C*H*W; a draw holds one row per image, or one row for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.choices import plugins
from rayd.errors import refuse
from rayd.schema import DERIVED, read

COLUMNS: dict[str, int] = {"color": 3, "crop": 2, "cutout": 2, "flip": 1, "scale": 2, "rotate": 1}
"""The operations and how many numbers each draws."""
BEFORE, AFTER = ("flip", "color"), ("cutout",)
"""Under `always`: what is applied before and after the one operation that is drawn."""
SHIFT, CUT, ZOOM, DEGREES = 0.125, 0.5, 1.2, 15.0


class Operation(Protocol):
    """An augmentation of one's own: so many random numbers an image, drawn on the CPU, and what they do to it."""

    columns: int

    def draw(self, rng: torch.Generator, n: int, height: int, width: int) -> Tensor:
        """[n, columns]"""
        ...

    def apply(self, images_NCHW: Tensor, values_NK: Tensor) -> Tensor:
        """Differentiable in the images; `values_NK` has one row for each of them, or one for all."""
        ...


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """`one`: each call applies one operation of the list (DC, DSA, MTT).

    `always`: flip, colour and cutout where listed, and one of the others (IDC, NCFM).
    """

    ops: tuple[str, ...] = tuple(COLUMNS)
    """Operations to draw from: color, crop, cutout, flip, scale, rotate, and those of the folder `methods`."""
    policy: Literal["one", "always"] = "one"
    """one: one operation a call; always: flip, colour and cutout where listed, and one of the others."""
    share: Literal["sample", "batch"] = "sample"
    """sample: every image its own parameters; batch: one set of parameters for the whole batch."""
    own: tuple[tuple[str, plugins.Own], ...] = field(default=(), metadata=DERIVED)
    """Operations of one's own among them."""

    @classmethod
    def from_plain(cls, mapping: Mapping[str, Any], where: str = "augment") -> AugmentConfig:
        listed, own = mapping.get("ops"), dict[str, plugins.Own]()
        for i, name in enumerate(listed if isinstance(listed, list | tuple) else ()):
            if (operation := plugins.own("augmentations", name, COLUMNS)) is not None:
                own[name] = operation
            elif isinstance(name, str) and name not in COLUMNS:
                allowed = " | ".join((*COLUMNS, *plugins.known().augmentations))
                raise refuse(f"{where}.ops[{i}]", name, allowed)
        return read(cls, mapping, where, {"own": tuple(own.items())})

    def __post_init__(self) -> None:
        unknown = [name for name in self.ops if name not in COLUMNS and name not in dict(self.own)]
        if unknown:
            raise refuse("augment.ops", unknown[0], " | ".join(COLUMNS))
        if len(set(self.ops)) != len(self.ops):
            raise refuse("augment.ops", ",".join(self.ops), "each operation at most once")

    def build(self) -> Augment:
        return Augment(self)


class Draw(NamedTuple):
    """Which operations, in order, and their numbers: one tensor, so that it moves to a device in one copy."""

    ops: tuple[str, ...]
    values_NK: Tensor
    """K columns in the order of ops; a single row serves a batch of any size."""

    def to(self, device: torch.device | str) -> Draw:
        return Draw(self.ops, self.values_NK.to(device, non_blocking=True))

    def rows(self, start: int, stop: int) -> Draw:
        """The draw of images start to stop (micro-batches)."""
        return self if len(self.values_NK) == 1 else Draw(self.ops, self.values_NK[start:stop])


class Augment:
    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self.own: dict[str, Operation] = {name: own.thing for name, own in config.own}
        self.columns = COLUMNS | {name: operation.columns for name, operation in self.own.items()}

    def draw(self, rng: torch.Generator, n: int, shape: tuple[int, ...]) -> Draw:
        """All randomness of one call on n images of this shape (its last two entries are H and W)."""
        ops = self._choose(rng)
        rows = n if self.config.share == "sample" else 1
        columns = [column for op in ops for column in self._numbers(op, rng, rows, shape[-2], shape[-1])]
        return Draw(ops, torch.stack(columns, 1) if columns else torch.empty(rows, 0))

    def _choose(self, rng: torch.Generator) -> tuple[str, ...]:
        ops, always = self.config.ops, self.config.policy == "always"
        before, after = ([op for op in fixed if always and op in ops] for fixed in (BEFORE, AFTER))
        pool = [op for op in self.columns if op in ops and op not in before + after]
        drawn = [pool[int(torch.randint(len(pool), (1,), generator=rng))]] if pool else []
        return tuple(before + drawn + after)

    def __call__(self, images_NCHW: Tensor, draw: Draw) -> Tensor:
        values_NK = draw.to(images_NCHW.device).values_NK
        columns = values_NK.split([self.columns[op] for op in draw.ops], 1) if draw.ops else ()
        for op, values in zip(draw.ops, columns, strict=True):
            values = values.to(images_NCHW.dtype if op == "color" else torch.float32)
            images_NCHW = (self.own[op].apply if op in self.own else _APPLY[op])(images_NCHW, values)
        return images_NCHW

    def _numbers(self, op: str, rng: torch.Generator, n: int, height: int, width: int) -> list[Tensor]:
        if op in self.own:
            return list(self.own[op].draw(rng, n, height, width).unbind(1))
        return _numbers(op, rng, n, height, width)

    def each(self, images_SNCHW: Tensor, draws: Sequence[Draw]) -> Tensor:
        """S sets of images, each under its own draw, in one call for all that drew the same operations: every image is
        treated as it would be alone."""
        device, size = images_SNCHW.device, images_SNCHW.shape[1]
        if len(draws) == 1:
            return self(images_SNCHW[0], draws[0].to(device))[None]
        out = torch.empty_like(images_SNCHW)
        for ops in dict.fromkeys(draw.ops for draw in draws):
            places = [s for s, draw in enumerate(draws) if draw.ops == ops]
            values = torch.cat([draws[s].values_NK.expand(size, -1) for s in places])
            where = torch.tensor(places, device=device)
            drawn = self(images_SNCHW[where].flatten(0, 1), Draw(ops, values).to(device))
            out[where] = drawn.unflatten(0, (-1, size))
        return out


def _numbers(op: str, rng: torch.Generator, n: int, height: int, width: int) -> list[Tensor]:
    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=rng) * (high - low) + low

    def integer(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (n,), generator=rng).float()

    if op == "color":
        return [uniform(-0.5, 0.5), uniform(0, 2), uniform(0.5, 1.5)]
    if op == "crop":
        return [integer(-most, most) for most in (int(height * SHIFT + 0.5), int(width * SHIFT + 0.5))]
    if op == "cutout":
        return [integer(0, side - int(side * CUT + 0.5) % 2) for side in (height, width)]
    if op == "flip":
        return [integer(0, 1)]
    if op == "scale":
        return [uniform(1 / ZOOM, ZOOM), uniform(1 / ZOOM, ZOOM)]
    return [uniform(-DEGREES, DEGREES) * (math.pi / 180)]


def _color(x: Tensor, values: Tensor) -> Tensor:
    """Brightness added, saturation about the channel mean (none on one channel), contrast about the image mean."""
    brightness, saturation, contrast = (values[:, i, None, None, None] for i in range(3))
    x = x + brightness
    if x.shape[1] > 1:
        mean = x.mean(1, keepdim=True)
        x = torch.lerp(mean, x, saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, x, contrast)


def _crop(x: Tensor, values: Tensor) -> Tensor:
    """A whole-pixel shift with zeros moving in: a permutation, whose backward has nothing to add up, and a mask."""
    n, c, h, w = x.shape
    rows = torch.arange(h, device=x.device) + values[:, 0, None].long()
    cols = torch.arange(w, device=x.device) + values[:, 1, None].long()
    index = ((rows % h)[:, :, None] * w + (cols % w)[:, None, :]).view(-1, 1, h * w).expand(n, c, h * w)
    inside = ((rows >= 0) & (rows < h))[:, None, :, None] & ((cols >= 0) & (cols < w))[:, None, None, :]
    return x.reshape(n, c, h * w).gather(2, index).view(n, c, h, w) * inside


def _cutout(x: Tensor, values: Tensor) -> Tensor:
    h, w = x.shape[2:]
    half = [int(side * CUT + 0.5) for side in (h, w)]

    def inside(side: int, size: int, centre: Tensor) -> Tensor:
        offset = torch.arange(side, device=x.device) - (centre[:, None] - size // 2)
        return (offset >= 0) & (offset < size)

    box = inside(h, half[0], values[:, 0])[:, None, :, None] & inside(w, half[1], values[:, 1])[:, None, None, :]
    return x * ~box


def _flip(x: Tensor, values: Tensor) -> Tensor:
    return torch.where(values[:, :, None, None] > 0.5, x.flip(3), x)


def _scale(x: Tensor, values: Tensor) -> Tensor:
    """Bilinear zoom about the centre, rows and columns apart, each a product with a small interpolation matrix."""
    h, w = x.shape[2:]

    def matrix(side: int, zoom_N: Tensor) -> Tensor:
        place = torch.arange(side, device=x.device, dtype=torch.float32)
        middle = (side - 1) / 2
        source = (place - middle) * zoom_N[:, None] + middle
        return (1 - (source[:, :, None] - place).abs()).clamp(min=0)[:, None].to(x.dtype)

    return matrix(h, values[:, 1]) @ x @ matrix(w, values[:, 0]).mT


def _rotate(x: Tensor, values: Tensor) -> Tensor:
    """Bilinear rotation about the centre, zeros outside; coordinates at least in fp32."""
    x32 = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    angle = values[:, 0]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    affine = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3).to(x32.dtype).expand(len(x), 2, 3)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x32, grid, mode="bilinear", padding_mode="zeros", align_corners=False).to(x.dtype)


_APPLY = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}
