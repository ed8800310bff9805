"""What libjpeg makes of the coefficients of a baseline JPEG file, to the bit, with a gradient.

The accurate integer inverse DCT, the triangle filter of half-size colour and the table of colours (jidctint.c, jdsample.c,
jdcolor.c): each rounds whole numbers, and a gradient passes straight through each rounding. Pillow decodes with these.

Shapes: N images, B blocks, 64 coefficients in zigzag order, of levels times steps.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.data.jpeg_files import ZIGZAG
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
