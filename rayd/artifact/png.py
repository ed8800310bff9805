"""Images to PNG bytes with zlib alone.

Shapes: N images, C channels (1 or 3), H, W sides.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

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
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


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
