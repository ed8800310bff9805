"""Any picture to a fixed-size uint8 array: where image files are decoded, for the cache and for jobs.prepare."""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]
Payload = bytes | Array
"""A picture file's bytes, or a decoded uint8 or uint16 [C, H, W]."""
T = TypeVar("T")
U = TypeVar("U")
BLOCK = 32
"""Items that a thread takes at a time; two blocks a thread are in flight, which bounds memory."""
LARGEST = 2**28
"""Bytes of a picture file; a larger one is not read."""


@dataclass(frozen=True)
class Shape:
    """What every picture of a set becomes."""

    size: int | None
    """Side in pixels; None: as it is, which must then be square and the same for all."""
    channels: int
    resize: str
    """squash: whole image to a square; crop: short side to size, middle kept; pad: long side to size, black borders."""
    bits: int = 16
    """Of 16-bit pictures that are in use."""


def decode(payload: Payload, shape: Shape) -> Array | str:
    """uint8 [C, H, W], or why this is no readable picture. Pillow's limit of pixels is an error here, not a warning."""
    from PIL import Image

    try:
        if isinstance(payload, np.ndarray):
            if payload.dtype == np.uint16:
                payload = to_8_bits(payload, shape.bits)
            sides = {shape.size or payload.shape[-1], *payload.shape[1:]}
            if len(sides) == 1 and len(payload) == shape.channels:
                return payload
            picture = Image.fromarray(payload[0] if len(payload) == 1 else payload.transpose(1, 2, 0))
        else:
            picture = Image.open(io.BytesIO(payload))
        if math.prod(picture.size) > (Image.MAX_IMAGE_PIXELS or 0):
            return f"{picture.size[0]}x{picture.size[1]} is more than {Image.MAX_IMAGE_PIXELS:,} pixels"
        if picture.mode.startswith("I"):
            picture = Image.fromarray(to_8_bits(np.asarray(picture), shape.bits))
        elif picture.mode == "F":
            return "32-bit floats; save it with 8 or 16 bits"
        picture = picture.convert("L" if shape.channels == 1 else "RGB")
        if shape.size is not None and picture.size != (shape.size, shape.size):
            picture = _fit(picture, shape.size, shape.resize)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return str(error).split("<")[0].strip() or type(error).__name__
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


@dataclass(frozen=True)
class Facts:
    """What a picture is before anything is done to it."""

    width: int
    height: int
    mode: str
    """Pillow's word: L, RGB, RGBA, P, CMYK; I;16 for one channel of 16 bits."""
    white: int = 0
    """Of 16 bits: the largest value."""


def facts(payload: Payload) -> Facts | str:
    """Out of the header alone, but for pictures of 16 bits; or why this is no picture."""
    from PIL import Image

    try:
        if isinstance(payload, np.ndarray):
            deep = payload.dtype == np.uint16
            mode = "I;16" if deep else "L" if len(payload) == 1 else "RGB"
            return Facts(payload.shape[2], payload.shape[1], mode, int(payload.max(initial=0)) if deep else 0)
        picture = Image.open(io.BytesIO(payload))
        deep = picture.mode.startswith("I")
        white = int(np.asarray(picture).max(initial=0)) if deep else 0
        return Facts(*picture.size, "I;16" if deep else picture.mode, white)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return str(error).split("<")[0].strip() or type(error).__name__


def to_8_bits(values: Array, bits: int) -> Array:
    """The upper 8 of the bits in use; what is brighter is white."""
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError("values beyond 16 bits; save it with 8 or 16 bits")
    eight: Array = np.minimum(values.astype(np.int64) >> (bits - 8), 255).astype(np.uint8)
    return eight


def _fit(picture: Any, size: int, rule: str) -> Any:
    from PIL import Image, ImageOps

    if rule == "squash":
        return picture.resize((size, size), Image.Resampling.BILINEAR)
    fit = ImageOps.fit if rule == "crop" else ImageOps.pad
    return fit(picture, (size, size), Image.Resampling.BILINEAR)


def in_threads(function: Callable[[T], U], items: Iterable[T], threads: int) -> Iterator[U]:
    """The function of every item, in order, a few blocks ahead (Pillow and files let go of the interpreter)."""
    source = iter(items)
    if threads == 1:
        yield from map(function, source)
        return

    def of_block(block: list[T]) -> list[U]:
        return [function(item) for item in block]

    ahead: deque[Future[list[U]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while True:
            while len(ahead) < 2 * threads and (block := list(islice(source, BLOCK))):
                ahead.append(pool.submit(of_block, block))
            if not ahead:
                return
            yield from ahead.popleft().result()


QUALITY = 75
"""Of the JPEG files that controls at equal bytes keep."""


def jpeg(pixels_CHW: Tensor) -> bytes:
    return compressed(pixels_CHW, "jpeg", QUALITY)


def formats() -> tuple[str, ...]:
    """Lossy formats beside JPEG that this Pillow writes."""
    from PIL import features

    return tuple(format for format in ("webp", "avif") if features.check(format))


def compressed(pixels_CHW: Tensor, format: str, quality: int) -> bytes:
    from PIL import Image

    array: Any = pixels_CHW[0].numpy() if len(pixels_CHW) == 1 else pixels_CHW.permute(1, 2, 0).contiguous().numpy()
    picture, out = Image.fromarray(array), io.BytesIO()
    picture.save(out, format=format, quality=quality)
    return out.getvalue()


def decompressed(data: bytes) -> Tensor:
    from PIL import Image

    array = torch.from_numpy(np.array(Image.open(io.BytesIO(data))))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1).contiguous()
