"""What libjpeg makes of the coefficients of a baseline JPEG file, to the bit, with a gradient.

The accurate integer inverse DCT, the triangle filter of half-size colour and the table of colours (jidctint.c, jdsample.c,
jdcolor.c): each rounds whole numbers, and a gradient passes straight through each rounding. Pillow decodes with these.

Shapes: N images, B blocks, 64 coefficients in zigzag order, of levels times steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rayd.data.jpeg_files import ZIGZAG, Layout
from rayd.distill.codec import dct

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
COLUMNS = torch.from_numpy(ZIGZAG).argsort().view(8, 8).T.flatten()
"""Place in zigzag order of each coefficient of a block, column by column."""


def inverse_dct(blocks_NBk: Tensor) -> Tensor:
    """Pixels [N, B, 8, 8], not yet cut to 0 to 255."""
    matrix = INVERSE.T.to(blocks_NBk.device)
    columns_j8 = blocks_NBk[..., COLUMNS.to(blocks_NBk.device)].double().view(-1, 8)
    half = (columns_j8 @ (matrix / 2 ** (FRACTION - MORE))).add_(0.5).floor_()
    rows_j8 = half.view(-1, 8, 8).transpose(1, 2).reshape(-1, 8)
    rows_j8 = (rows_j8 @ (matrix / 2 ** (FRACTION + MORE + 3))).add_(0.5).floor_()
    out: Tensor = rows_j8.add_(128).view(*blocks_NBk.shape[:2], 8, 8)
    return out


def of_inverse_dct(grad_NBhw: Tensor) -> Tensor:
    """The gradient of the coefficients [N, B, 64]."""
    matrix = (INVERSE / 2 ** (FRACTION + 1.5)).to(grad_NBhw)
    columns = (grad_NBhw.reshape(-1, 8) @ matrix).view(-1, 8, 8).transpose(1, 2).reshape(-1, 8) @ matrix
    return columns.view(*grad_NBhw.shape[:2], 64)[..., COLUMNS.argsort().to(grad_NBhw.device)]


def doubled(plane_Nhw: Tensor) -> Tensor:
    """Twice the sides, by a triangle filter: three quarters of the nearest, one of the next, in each direction."""
    padded = F.pad(plane_Nhw[:, None], (1, 1, 1, 1), "replicate")[:, 0]
    near = 3 * padded[:, 1:-1]
    rows = torch.stack([near + padded[:, :-2], near + padded[:, 2:]], 2).flatten(1, 2)
    near = 3 * rows[..., 1:-1]
    left, right = near + rows[..., :-2] + 8, near + rows[..., 2:] + 7
    return torch.stack([left, right], -1).flatten(2).div_(16).floor_()


def of_doubled(grad_Nhw: Tensor) -> Tensor:
    """The gradient of the smaller plane."""

    def across(grad: Tensor) -> Tensor:
        left, right = grad[..., 0::2], grad[..., 1::2]
        out = 3 * (left + right)
        out[..., :-1] += left[..., 1:]
        out[..., 1:] += right[..., :-1]
        out[..., 0] += left[..., 0]
        out[..., -1] += right[..., -1]
        return out / 4

    return across(across(grad_Nhw).transpose(1, 2)).transpose(1, 2)


def coloured(y: Tensor, cb: Tensor, cr: Tensor) -> Tensor:
    """RGB [N, 3, H, W], not yet cut to 0 to 255."""

    def part(x: Tensor, factor: float) -> Tensor:
        return int(factor * 2**16 + 0.5) * (x - 128)

    red = y + (part(cr, 1.402).add_(2**15) / 2**16).floor_()
    green = y + ((2**15 - part(cb, 0.34414)).sub_(part(cr, 0.71414)) / 2**16).floor_()
    blue = y + (part(cb, 1.772).add_(2**15) / 2**16).floor_()
    return torch.stack([red, green, blue], 1)


def of_coloured(grad_NCHW: Tensor) -> list[Tensor]:
    """The gradients of luma and colours."""
    red, green, blue = grad_NCHW.unbind(1)
    return [red + green + blue, 1.772 * blue - 0.34414 * green, 1.402 * red - 0.71414 * green]


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


def cut(x: Tensor) -> tuple[Tensor, Tensor]:
    """To 0 to 255, and where it was within, which is where a gradient passes."""
    out = x.clamp(0, 255)
    return out, out == x


class _Decoded(torch.autograd.Function):
    """Decoding with the gradient of its linear parts, in fp32: half the time of one through every rounding."""

    @staticmethod
    def forward(ctx: Any, blocks_NBk: Tensor, planes: Planes) -> Tensor:
        pixels, *inside = planes.decode(blocks_NBk)
        ctx.planes = planes
        ctx.save_for_backward(*inside)
        return pixels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NCHW: Tensor) -> tuple[Tensor, None]:
        of_blocks, of_pixels = ctx.saved_tensors
        return ctx.planes.gradient(grad_NCHW * of_pixels, of_blocks), None


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
        out: Tensor = _Decoded.apply(blocks_NBk, self)
        return out

    def _shape(self, channel: int) -> tuple[bool, int, int, int, int]:
        """Whether a channel's plane is half as large, blocks down and across, height and width."""
        small, share = self.layout.half and channel > 0, self._share(channel)
        (down, across), height, width = self.layout.units, self.layout.height, self.layout.width
        if small:
            height, width = -(-height // 2), -(-width // 2)
        return small, share * down, share * across, height, width

    def decode(self, blocks_NBk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The pixels, and where the blocks' and the images' were within 0 to 255."""
        x_NBhw, inside_NBhw = cut(inverse_dct(blocks_NBk).float())
        planes = []
        for channel in range(self.layout.channels):
            small, down, across, height, width = self._shape(channel)
            plane = x_NBhw.index_select(1, getattr(self, f"place_{channel}")).unflatten(1, (down, across))
            plane = plane.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]
            planes.append(doubled(plane)[:, : self.layout.height, : self.layout.width] if small else plane)
        pixels, inside = cut(coloured(*planes) if len(planes) == 3 else planes[0][:, None])
        return pixels, inside_NBhw, inside

    def gradient(self, grad_NCHW: Tensor, inside_NBhw: Tensor) -> Tensor:
        """Of the blocks: straight through every rounding."""
        out_NBhw = torch.empty_like(inside_NBhw, dtype=grad_NCHW.dtype)
        grads = of_coloured(grad_NCHW) if self.layout.channels == 3 else [grad_NCHW[:, 0]]
        for channel, grad in enumerate(grads):
            small, down, across, height, width = self._shape(channel)
            if small:
                grad = of_doubled(F.pad(grad, (0, 2 * width - grad.shape[2], 0, 2 * height - grad.shape[1])))
            grad = F.pad(grad, (0, 8 * across - width, 0, 8 * down - height))
            grad_NBhw = grad.unflatten(2, (across, 8)).unflatten(1, (down, 8)).transpose(2, 3).flatten(1, 2)
            out_NBhw[:, getattr(self, f"place_{channel}")] = grad_NBhw
        return of_inverse_dct(out_NBhw.mul_(inside_NBhw))

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
