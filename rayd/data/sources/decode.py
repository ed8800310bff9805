"""Any picture to a fixed-size uint8 array: where image files are decoded, for the cache and for jobs.prepare."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]
Payload = bytes | Array | Callable[[], bytes]
"""A file's bytes, a decoded uint8 [C, H, W], or how to read the bytes (done in the thread that decodes them)."""
HANDFUL = 32
"""Pictures that a thread decodes at a time; two handfuls a thread are in flight, which bounds memory."""


@dataclass(frozen=True)
class Shape:
    """What every picture of a set becomes."""

    size: int | None
    """Side in pixels; None: as it is, which must then be square and the same for all."""
    channels: int
    resize: str
    """squash: whole image to a square; crop: short side to size, middle kept; pad: long side to size, black borders."""


def decode(payload: Payload, shape: Shape) -> Array | str:
    """uint8 [C, H, W], or why this is no readable picture. A file that cannot be read at all is an error."""
    from PIL import Image

    payload = payload() if callable(payload) else payload
    try:
        if isinstance(payload, np.ndarray):
            if shape.size in (None, payload.shape[-1]) and len(payload) == shape.channels:
                return payload
            picture = Image.fromarray(payload[0] if len(payload) == 1 else payload.transpose(1, 2, 0))
        else:
            picture = Image.open(io.BytesIO(payload))
        if picture.mode.startswith("I;16"):
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        picture = picture.convert("L" if shape.channels == 1 else "RGB")
        if shape.size is not None and picture.size != (shape.size, shape.size):
            picture = _fit(picture, shape.size, shape.resize)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error).split("<")[0].strip() or type(error).__name__
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _fit(picture: Any, size: int, rule: str) -> Any:
    from PIL import Image, ImageOps

    if rule == "squash":
        return picture.resize((size, size), Image.Resampling.BILINEAR)
    fit = ImageOps.fit if rule == "crop" else ImageOps.pad
    return fit(picture, (size, size), Image.Resampling.BILINEAR)


def decode_all(payloads: Iterable[Payload], shape: Shape, threads: int) -> Iterator[Array | str]:
    """In order, in threads (Pillow lets go of the interpreter while it decodes), a few handfuls at a time."""
    source = iter(payloads)
    if threads == 1:
        yield from (decode(payload, shape) for payload in source)
        return
    handfuls: deque[Future[list[Array | str]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while True:
            while len(handfuls) < 2 * threads and (handful := list(islice(source, HANDFUL))):
                handfuls.append(pool.submit(_decode_some, handful, shape))
            if not handfuls:
                return
            yield from handfuls.popleft().result()


def _decode_some(payloads: list[Payload], shape: Shape) -> list[Array | str]:
    return [decode(payload, shape) for payload in payloads]


QUALITY = 75


def jpeg(pixels_CHW: Tensor) -> bytes:
    from PIL import Image

    array: Any = pixels_CHW[0].numpy() if len(pixels_CHW) == 1 else pixels_CHW.permute(1, 2, 0).contiguous().numpy()
    out = io.BytesIO()
    Image.fromarray(array).save(out, format="JPEG", quality=QUALITY)
    return out.getvalue()


def unjpeg(data: bytes) -> Tensor:
    import numpy as np
    from PIL import Image

    array = torch.from_numpy(np.array(Image.open(io.BytesIO(data))))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1).contiguous()
