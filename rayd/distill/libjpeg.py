"""What libjpeg makes of the coefficients of a baseline JPEG file, to the bit, with a gradient.

The accurate integer inverse DCT, the triangle filter of half-size colour and the table of colours (jidctint.c, jdsample.c,
jdcolor.c): each rounds whole numbers, and a gradient passes straight through each rounding. Pillow decodes with these.

Shapes: N images, B blocks, 64 coefficients in zigzag order, of levels times steps.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayd.data.jpeg_files import ZIGZAG, Layout
from rayd.distill.codec import dct


def whole(x: Tensor) -> Tensor:
    """Rounded down; the gradient passes straight through."""
    return x + (x.floor() - x).detach()


FRACTION, MORE = 13, 2
"""Bits behind the point of the inverse DCT's constants, and of what its first pass leaves."""


def _inverse_matrix() -> Tensor:
    """One pass of the accurate integer inverse DCT (Loeffler, Ligtenberg, Moschytz), times 2^13: [8 places, 8]."""

    def fixed(x: float) -> int:
        return int(x * 2**FRACTION + 0.5)

    out = np.zeros((8, 8), np.int64)
    for k in range(8):
        i = [int(j == k) for j in range(8)]
        z1 = (i[2] + i[6]) * fixed(0.541196100)
        t2, t3 = z1 - i[6] * fixed(1.847759065), z1 + i[2] * fixed(0.765366865)
        t0, t1 = (i[0] + i[4]) << FRACTION, (i[0] - i[4]) << FRACTION
        even = (t0 + t3, t1 + t2, t1 - t2, t0 - t3)
        z5 = (i[7] + i[3] + i[5] + i[1]) * fixed(1.175875602)
        z1, z2 = -(i[7] + i[1]) * fixed(0.899976223), -(i[5] + i[3]) * fixed(2.562915447)
        z3, z4 = z5 - (i[7] + i[3]) * fixed(1.961570560), z5 - (i[5] + i[1]) * fixed(0.390180644)
        odd = (
            i[1] * fixed(1.501321110) + z1 + z4,
            i[3] * fixed(3.072711026) + z2 + z3,
            i[5] * fixed(2.053119869) + z2 + z4,
            i[7] * fixed(0.298631336) + z1 + z3,
        )
        for place in range(4):
            out[place, k], out[7 - place, k] = even[place] + odd[place], even[place] - odd[place]
    return torch.from_numpy(out).double()


INVERSE = _inverse_matrix()
NATURAL = torch.from_numpy(ZIGZAG).argsort()
"""Place in zigzag order of each coefficient of a block, row by row."""


def inverse_dct(blocks_NBk: Tensor) -> Tensor:
    """Pixels [N, B, 8, 8] of 0 to 255."""
    matrix = INVERSE.to(blocks_NBk.device)
    x = blocks_NBk[..., NATURAL.to(blocks_NBk.device)].unflatten(-1, (8, 8))
    columns = whole((matrix @ x) / 2 ** (FRACTION - MORE) + 0.5)
    rows = whole((columns @ matrix.T) / 2 ** (FRACTION + MORE + 3) + 0.5)
    return (rows + 128).clamp(0, 255)


def doubled(plane_Nhw: Tensor) -> Tensor:
    """Twice the sides, by a triangle filter: three quarters of the nearest, one of the next, in each direction."""
    padded = F.pad(plane_Nhw[:, None], (1, 1, 1, 1), "replicate")[:, 0]
    near = padded[:, 1:-1]
    rows = torch.stack([3 * near + padded[:, :-2], 3 * near + padded[:, 2:]], 2).flatten(1, 2)
    near = rows[..., 1:-1]
    left, right = whole((3 * near + rows[..., :-2] + 8) / 16), whole((3 * near + rows[..., 2:] + 7) / 16)
    return torch.stack([left, right], -1).flatten(2)


def coloured(y: Tensor, cb: Tensor, cr: Tensor) -> Tensor:
    """RGB [N, 3, H, W] of 0 to 255."""

    def part(x: Tensor, factor: float) -> Tensor:
        return int(factor * 2**16 + 0.5) * (x - 128)

    red = y + whole((part(cr, 1.402) + 2**15) / 2**16)
    green = y + whole((2**15 - part(cb, 0.34414) - part(cr, 0.71414)) / 2**16)
    blue = y + whole((part(cb, 1.772) + 2**15) / 2**16)
    return torch.stack([red, green, blue], 1).clamp(0, 255)


def channels_of(rgb_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Luma and colours, as JFIF defines them."""
    red, green, blue = rgb_NCHW.unbind(1)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    return y, (blue - y) / 1.772 + 128, (red - y) / 1.402 + 128


def forward_dct(plane_Nhw: Tensor, down: int, across: int) -> Tensor:
    """Coefficients [N, B, 64] of so many blocks, in raster order; edges are repeated to fill them. Not rounded."""
    fill = (0, 8 * across - plane_Nhw.shape[2], 0, 8 * down - plane_Nhw.shape[1])
    padded = F.pad(plane_Nhw[:, None], fill, "replicate")[:, 0]
    x_NBhw = padded.unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).transpose(2, 3).flatten(1, 2) - 128
    basis = dct(8, 8).to(x_NBhw)
    coefficients_NBk: Tensor = (basis @ x_NBhw @ basis.T).flatten(2)
    return coefficients_NBk[..., torch.from_numpy(ZIGZAG)]


class Planes(nn.Module):
    """Images of a layout, out of the blocks of their scans and into them."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        channel_B = torch.from_numpy(layout.channel_B)
        down, across = layout.units
        for channel in range(layout.channels):
            where, k = (channel_B == channel).nonzero().flatten(), self._share(channel)
            raster = torch.arange(down * across * k * k).view(down, across, k, k).permute(0, 2, 1, 3).flatten()
            self.register_buffer(f"place_{channel}", where[raster], persistent=False)

    def _share(self, channel: int) -> int:
        """Blocks of a channel across a unit."""
        return 2 if self.layout.half and channel == 0 else 1

    def pixels(self, blocks_NBk: Tensor) -> Tensor:
        """Of 0 to 255, as libjpeg decodes them: [N, C, H, W]."""
        height, width = self.layout.height, self.layout.width
        planes = []
        for channel in range(self.layout.channels):
            x_NBhw = inverse_dct(blocks_NBk[:, getattr(self, f"place_{channel}")].double())
            down, across = (self._share(channel) * units for units in self.layout.units)
            plane = x_NBhw.unflatten(1, (down, across)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
            small = self.layout.half and channel > 0
            plane = plane[:, : -(-height // 2), : -(-width // 2)] if small else plane[:, :height, :width]
            planes.append(doubled(plane)[:, :height, :width] if small else plane)
        return (coloured(*planes) if len(planes) == 3 else planes[0][:, None]).float()

    def blocks(self, pixels_NCHW: Tensor) -> Tensor:
        """Coefficients before they are rounded: [N, B, 64]."""
        down, across = self.layout.units
        out = pixels_NCHW.new_empty(len(pixels_NCHW), self.layout.blocks, 64)
        for channel, plane in enumerate(
            channels_of(pixels_NCHW) if self.layout.channels == 3 else pixels_NCHW.unbind(1)
        ):
            if self.layout.half and channel > 0:
                even = F.pad(plane[:, None], (0, plane.shape[2] % 2, 0, plane.shape[1] % 2), "replicate")
                plane = F.avg_pool2d(even, 2)[:, 0]
            k = self._share(channel)
            out[:, getattr(self, f"place_{channel}")] = forward_dct(plane, k * down, k * across)
        return out
