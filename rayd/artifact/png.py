"""Images to PNG bytes and back, with zlib alone: an artifact is written and checked where torch is all there is.

Shapes: N images, C channels (1 or 3), H, W sides.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from rayd.errors import Refused

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GAP = 2
PAPER = 1.0


def png(image_CHW: Tensor) -> bytes:
    """One image, uint8 or floats in [0, 1] (clipped), one channel or three."""
    x = image_CHW if image_CHW.dtype == torch.uint8 else (image_CHW * 255).round().clamp(0, 255).to(torch.uint8)
    channels, height, width = x.shape
    colour = {1: 0, 3: 2}[channels]
    rows = x.permute(1, 2, 0).contiguous().reshape(height, -1).cpu()
    raw = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), rows], 1).numpy().tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def unpng(data: bytes, shape: Sequence[int]) -> Tensor:
    """The image [C, H, W] in a file of ours; one of another shape or of another writer is refused."""
    channels, height, width = shape
    chunks, at = {b"IHDR": b"", b"IDAT": b""}, len(SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunks[kind] = chunks.get(kind, b"") + data[at + 8 : at + 8 + length]
        at += length + 12
    if chunks[b"IHDR"] != struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0):
        raise Refused(f"preview.png: not an 8-bit image of {width} x {height}, as the artifact's images make it")
    size = height * (1 + width * channels)
    try:
        raw = zlib.decompressobj().decompress(chunks[b"IDAT"], size)
    except zlib.error as error:
        raise Refused(f"preview.png: not readable ({error})") from error
    if len(raw) != size or any(raw[:: 1 + width * channels]):
        raise Refused("preview.png: its rows are short or filtered, which rayd never writes")
    rows = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(height, 1 + width * channels)[:, 1:]
    return rows.reshape(height, width, channels).permute(2, 0, 1)


def grid(rows: Sequence[Tensor], gap: int = GAP) -> Tensor:
    """Rows of images [N, C, H, W] on white paper; rows may differ in length."""
    filled = [row for row in rows if len(row)]
    if not filled:
        return torch.full((1, 1, 1), PAPER)
    channels, height, width = filled[0].shape[1:]
    most = max(len(row) for row in filled)
    canvas = torch.full((channels, len(filled) * (height + gap) - gap, most * (width + gap) - gap), PAPER)
    for i, row in enumerate(filled):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[:, top : top + height, left : left + width] = image.float().clamp(0, 1)
    return canvas


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
