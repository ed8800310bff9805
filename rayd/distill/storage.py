"""How numbers become bytes: a type, whose scale, and a coder. Any tensor of any codec, learned labels too.

A storage is written `TYPE`, or for whole numbers `TYPE.SCALES` and `TYPE.SCALES.zlib`:

    fp32 | fp16 | bf16                floating point
    int2 | int3 | int4 | int6 | int8  levels of a grid, whose step is a scale in bf16
    row | group64 | column | tensor   who shares a scale: what has the first index in common, 64 numbers in turn, what has
                                      the last two indices in common, all numbers
    zlib                              the levels go through zlib where that saves a twentieth of them

A grid of b bits has the 2^b values (q - (2^b - 1) / 2) * scale, symmetric about zero and without it; that of `int8` with
scales of rows alone has the 255 values q * scale. The scale is the one of `SHARES` of the largest magnitude that leaves the
least square error. Scales have eight bits, so that a value is exact in fp32, and what was read packs to the same bytes.

In a file, tensor `x` is `x` (levels, eight bits or several to a byte), `x.scale` and `x.form` (bits, group, rows, whether
coded, shape): nothing else is needed to read it.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayd.errors import refuse

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BITS = {"int2": 2, "int3": 3, "int4": 4, "int6": 6, "int8": 8}
TYPES = (*FLOATS, *BITS)
SCALE, FORM = ".scale", ".form"
"""Suffixes of the tensors that hold the scales and the layout of packed levels."""
GROUP = re.compile(r"group([1-9]\d*)")
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Of the largest magnitude that a grid may reach; below it numbers are clipped to its end."""
CLIPPED_BITS = 6
"""From so many bits on no number is clipped: a grid reaches the largest magnitude."""
LOOK = 512
"""Numbers of one scale that its choice looks at, spread evenly."""
SAVES = 0.05
"""Share of the levels that the coder must save to be used."""
DENSEST, ANY = 64, 2**12
"""A reader unpacks at most so many numbers from a byte, and any tensor of so few: a small file cannot fill a memory."""
LEAST_SHARED = 32
"""Numbers of a column below which its tensor takes the scales of rows."""

Shape = tuple[int, ...]
Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Storage:
    """One way of storing, parsed."""

    type: str
    scales: str = "row"
    coded: bool = False

    @classmethod
    def parse(cls, text: str) -> Storage:
        return _parse(text)

    @property
    def bits(self) -> int | None:
        """Of a level; None of a floating type."""
        return BITS.get(self.type)

    @property
    def legacy(self) -> bool:
        """Signed bytes by rows, as the first artifacts have them: no layout is written."""
        return self == Storage("int8")

    @property
    def itemsize(self) -> float:
        """Bytes of one number, scales apart."""
        return FLOATS[self.type].itemsize if self.bits is None else self.bits / 8

    def keeps(self, shape: Shape) -> bool:
        """Whether a tensor of this shape stays in fp32: what has fewer than two axes, under whole numbers."""
        return self.bits is not None and len(shape) < 2

    def grouping(self, shape: Shape) -> tuple[str, int, int]:
        """Who shares a scale (row, column), how many scales there are, and how many numbers have one."""
        numbers, last = math.prod(shape), math.prod(shape[-2:])
        group = GROUP.fullmatch(self.scales)
        if group:
            size = int(group[1])
            return "row", -(-numbers // size), size
        if self.scales == "tensor":
            return "row", 1, numbers
        if self.scales == "column" and numbers >= LEAST_SHARED * last:
            return "column", last, numbers // last
        return "row", shape[0], numbers // max(shape[0], 1)


@cache
def _parse(text: str) -> Storage:
    kind, *rest = text.split(".")
    coded = rest[-1:] == ["zlib"]
    scales = rest[: len(rest) - coded]
    known = not scales or scales[0] in ("row", "column", "tensor") or GROUP.fullmatch(scales[0])
    if kind not in TYPES or len(scales) > 1 or not known or (rest and kind in FLOATS):
        allowed = f"{' | '.join(FLOATS)}, or {' | '.join(BITS)} and .row, .column, .tensor or .group64, and .zlib"
        raise refuse("storage", text, allowed)
    return Storage(kind, scales[0] if scales else "row", coded)


# --- one tensor -------------------------------------------------------------------------------------------------------


def pack(tensor: Tensor, storage: str) -> Parts:
    """The tensors a file holds for one stored tensor, by suffix. Integer tensors are kept as they are."""
    how = Storage.parse(storage)
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return {"": tensor}
    if how.bits is None:
        return {"": _finite(tensor, FLOATS[how.type])}
    if how.keeps(tuple(tensor.shape)):
        return {"": tensor.float()}
    rows_GN = _rows(tensor.float(), how)
    levels_GN, scale_G = _levels(rows_GN, how)
    if how.legacy:
        return {"": levels_GN.to(torch.int8).view(tensor.shape), SCALE: scale_G}
    axis, _, size = how.grouping(tuple(tensor.shape))
    flat = _ungrouped(levels_GN, tuple(tensor.shape), axis).to(torch.uint8)
    data = _joined(flat, how.bits)
    coded = zlib.compress(data.numpy().tobytes(), 9) if how.coded else b""
    used = how.coded and len(coded) <= (1 - SAVES) * data.numel() and tensor.numel() <= _most(len(coded))
    if used:
        data = torch.from_numpy(np.frombuffer(coded, np.uint8).copy())
    form = torch.tensor([how.bits, size, axis == "column", used, *tensor.shape], dtype=torch.int32)
    return {"": data, SCALE: scale_G, FORM: form}


def unpack(parts: Mapping[str, Tensor]) -> Tensor:
    """The fp32 tensor that `pack` stored (an integer tensor as it is)."""
    tensor = parts[""]
    if FORM in parts:
        return _from_form(tensor, parts)
    if SCALE in parts:
        rows = parts[SCALE]
        if (
            tensor.dtype != torch.int8
            or tensor.ndim < 2
            or rows.shape != tensor.shape[:1]
            or not rows.is_floating_point()
        ):
            raise refuse("int8", tuple(tensor.shape), f"rows of int8 with a scale each, not {tuple(rows.shape)} scales")
        return (tensor.float().flatten(1) * parts[SCALE].float()[:, None]).view(tensor.shape)
    return tensor.float() if tensor.is_floating_point() else tensor


def rounded(tensor: Tensor, storage: str) -> Tensor:
    """What a reader of the file gets, without the file: `unpack(pack(tensor, storage))` on the tensor's own device."""
    how = Storage.parse(storage)
    shape = tuple(tensor.shape)
    if not tensor.is_floating_point() or how.keeps(shape):
        return tensor
    if how.bits is None:
        return _finite(tensor, FLOATS[how.type]).float()
    levels_GN, scale_G = _levels(_rows(tensor.float(), how), how)
    values_GN = _values(levels_GN, scale_G.float(), 0.0 if how.legacy else (2**how.bits - 1) / 2)
    return _ungrouped(values_GN, shape, how.grouping(shape)[0]).view(shape)


@contextmanager
def through(module: nn.Module, quantise: Callable[[], None]) -> Iterator[None]:
    """Within, the module holds the numbers of its file, and a gradient taken there moves the numbers behind them."""
    behind = [(p, p.detach().clone()) for p in module.parameters()]
    quantise()
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in behind:
                p.copy_(value)


def pack_shape(shape: Shape, storage: str) -> dict[str, tuple[Shape, torch.dtype]]:
    """What `pack` would give for a floating tensor of this shape, before a coder: suffix -> (shape, dtype)."""
    how = Storage.parse(storage)
    if how.bits is None:
        return {"": (shape, FLOATS[how.type])}
    if how.keeps(shape):
        return {"": (shape, torch.float32)}
    _, scales, _ = how.grouping(shape)
    if how.legacy:
        return {"": (shape, torch.int8), SCALE: ((scales,), torch.bfloat16)}
    levels = -(-math.prod(shape) * how.bits // 8)
    form = ((4 + len(shape),), torch.int32)
    return {"": ((levels,), torch.uint8), SCALE: ((scales,), torch.bfloat16), FORM: form}


def count(shape: Shape, storage: str) -> int:
    """Numbers that a tensor of this shape is stored as, its scales among them."""
    how = Storage.parse(storage)
    return math.prod(shape) + (0 if how.bits is None or how.keeps(shape) else how.grouping(shape)[1])


def _finite(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    limit = torch.finfo(dtype).max
    return tensor.clamp(-limit, limit).to(dtype)


# --- levels -----------------------------------------------------------------------------------------------------------


def _rows(tensor: Tensor, how: Storage) -> Tensor:
    """One row of numbers for each scale; the last group is filled up with its last number."""
    axis, scales, size = how.grouping(tuple(tensor.shape))
    if axis == "column":
        return tensor.reshape(size, scales).T
    flat = tensor.flatten()
    return torch.cat([flat, flat[-1:].expand(scales * size - flat.numel())]).view(scales, size)


def _ungrouped(rows_GN: Tensor, shape: Shape, axis: str) -> Tensor:
    """The inverse of `_rows`, flat."""
    return (rows_GN.T if axis == "column" else rows_GN).reshape(-1)[: math.prod(shape)]


def _levels(rows_GN: Tensor, how: Storage) -> tuple[Tensor, Tensor]:
    """Levels (signed of the legacy type, else from 0) as floats, and scales in bf16."""
    assert how.bits is not None
    half = 127.0 if how.legacy else (2**how.bits - 1) / 2
    offset = 0.0 if how.legacy else half
    largest_G = rows_GN.abs().amax(1)
    shares = (1.0,) if how.bits >= CLIPPED_BITS else SHARES
    stride = -(-rows_GN.shape[1] // LOOK)
    look_GN = rows_GN[:, ::stride]
    best_G, scale_G = torch.full_like(largest_G, torch.inf), torch.ones_like(largest_G)
    for share in shares:
        tried_G = (largest_G * share / half).to(torch.bfloat16).float()
        if len(shares) == 1:
            scale_G = tried_G
            break
        gap_GN = look_GN - _values(_nearest(look_GN, tried_G, half, offset), tried_G, offset)
        error_G = gap_GN.square().sum(1)
        scale_G = torch.where(error_G < best_G, tried_G, scale_G)
        best_G = torch.minimum(error_G, best_G)
    if how.legacy:
        scale_G = torch.where(scale_G == 0, torch.ones_like(scale_G), scale_G)
    return _nearest(rows_GN, scale_G, half, offset), scale_G.to(torch.bfloat16)


def _nearest(rows_GN: Tensor, scale_G: Tensor, half: float, offset: float) -> Tensor:
    """A scale of zero stands for zeros alone."""
    divisor_G = torch.where(scale_G == 0, torch.ones_like(scale_G), scale_G)
    return (rows_GN / divisor_G[:, None] + offset).round().clamp(offset - half, offset + half)


def _values(levels_GN: Tensor, scale_G: Tensor, offset: float) -> Tensor:
    return (levels_GN - offset) * scale_G[:, None]


def _from_form(data: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """Checked, for a file may be a stranger's: no more is unpacked than the shape asks for and the bytes can mean."""
    form, scales = parts[FORM], parts.get(SCALE)
    good = form.dtype == torch.int32 and 6 <= form.numel() <= 12 and data.dtype == torch.uint8 and data.ndim == 1
    bits, size, column, coded, *shape = form.flatten().tolist() if good else (0, 0, 0, 0)
    numbers = math.prod(shape)
    if not good or bits not in BITS.values() or min(size, *shape) < 1 or scales is None:
        raise refuse(
            "packed numbers", form.flatten().tolist()[:12], "bits, group, column, coded and a shape, as it was written"
        )
    if numbers > _most(len(data)):
        raise refuse("packed numbers", shape, f"at most {_most(len(data))} numbers in {len(data)} bytes")
    groups = numbers // size if column else -(-numbers // size)
    if tuple(scales.shape) != (groups,) or not scales.is_floating_point() or (column and groups * size != numbers):
        raise refuse("packed numbers", tuple(scales.shape), f"{groups} scales")
    raw, room = data.numpy(), -(-numbers * bits // 8)
    if coded:
        try:
            raw = np.frombuffer(zlib.decompressobj().decompress(raw.tobytes(), room + 1), np.uint8)
        except zlib.error as error:
            raise refuse(
                "packed numbers", f"{len(data)} coded bytes", f"{room} bytes once decoded ({error})"
            ) from error
    if len(raw) != room:
        raise refuse("packed numbers", f"{len(raw)} bytes", f"{room} bytes for {numbers} numbers of {bits} bits")
    values, scale_G = torch.from_numpy(_split(raw, bits, numbers)).float().sub_((2**bits - 1) / 2), scales.float()
    if column:
        return values.view(size, groups).mul_(scale_G).view(shape)
    full = numbers // size * size  # the last group may be shorter
    values[:full].view(-1, size).mul_(scale_G[: full // size, None])
    values[full:].mul_(scale_G[-1])
    return values.view(shape)


def _most(size: int) -> int:
    """Numbers that so many bytes may unpack to."""
    return max(ANY, DENSEST * size)


def _joined(levels_N: Tensor, bits: int) -> Tensor:
    """Levels one after another, `bits` bits each, the highest first."""
    if bits == 8:
        return levels_N
    planes = np.unpackbits(levels_N.numpy()[:, None], axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(planes.reshape(-1)))


def _split(data: np.ndarray[Any, Any], bits: int, numbers: int) -> np.ndarray[Any, Any]:
    """The inverse of `_joined`."""
    if bits == 8:
        return data[:numbers].copy()
    planes = np.unpackbits(data, count=numbers * bits).reshape(numbers, bits)
    return planes @ (1 << np.arange(bits)[::-1]).astype(np.uint8)
