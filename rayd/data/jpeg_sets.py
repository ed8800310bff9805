"""A set of JPEG images as the tensors of one file: a common head, and the scans with their lengths or one stream.

Scans are those of ordinary files (`rayd.data.jpeg_files`). A stream (`rayd.data.jpeg_stream`) is shorter, without lengths.

Shapes: U images, B blocks in the order of the scan, 64 coefficients in zigzag order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayd.data import jpeg_files, jpeg_stream
from rayd.data.jpeg_files import Array, Layout
from rayd.errors import refuse

SHORTER = 0.86
"""A stream, of the bits of the Huffman codes; a first guess."""
DEADEST = 8.0
"""Nothing is left of nearly every set."""


@dataclass(frozen=True)
class Coding:
    layout: Layout
    stream: bool

    @property
    def pixels(self) -> str:
        """Name of the tensor that holds the coefficients."""
        return "stream" if self.stream else "scans"

    def length_type(self) -> torch.dtype:
        """Of the length of a scan: two bytes where a byte for every coefficient would do."""
        return torch.int16 if self.layout.blocks * 64 < 2**15 else torch.int32

    def size(self, levels_UBk: Tensor, shorter: float = SHORTER) -> float:
        """Bytes of the scans: their bits, half a byte of filling each, and a stuffed byte in 256. Of a stream: about."""
        what = jpeg_files.symbols(levels_UBk.cpu().numpy(), self.layout)
        bits = jpeg_files.scan_bits(what, jpeg_files.all_lengths(what.counts()))
        return bits / 8 * shorter if self.stream else bits / 8 * (1 + 1 / 256) + 0.5 * len(levels_UBk)

    def pack(self, levels_UBk: Tensor, steps: Tensor) -> dict[str, Tensor]:
        levels, steps_k = levels_UBk.long().cpu().numpy(), steps.long().cpu().numpy()
        if self.stream:
            head, _ = jpeg_files.write(levels[:0], self.layout, steps_k)
            return {"head": as_tensor(head), "stream": as_tensor(jpeg_stream.encode(levels, self.layout))}
        head, scans = jpeg_files.write(levels, self.layout, steps_k)
        lengths = torch.tensor([len(scan) for scan in scans], dtype=self.length_type())
        return {"head": as_tensor(head), "scans": as_tensor(b"".join(scans)), "lengths": lengths}

    def pack_within(
        self, room: float, rounded: Callable[[float], Tensor], dead: float, steps: Tensor
    ) -> dict[str, Tensor]:
        """Packed so that head and pixels keep `room` bytes. A coefficient of `rounded(dead)` needs 0.5 + `dead` of a step to
        count; `dead` grows as far as it takes."""
        tensors = self.pack(rounded(dead), steps)
        while (size := sum(tensors[name].numel() for name in ("head", self.pixels))) > room and dead < DEADEST:
            wanted = self.size(rounded(dead)) * room / size
            while self.size(rounded(dead)) > wanted and dead < DEADEST:
                dead += 0.02
            tensors = self.pack(rounded(dead), steps)
        return tensors

    def files(self, levels_UBk: Tensor, steps: Tensor) -> list[bytes]:
        """An ordinary JPEG file for each image."""
        head, scans = jpeg_files.write(levels_UBk.cpu().numpy(), self.layout, steps.long().cpu().numpy())
        return [jpeg_files.file(head, scan) for scan in scans]

    def unpack(self, numbers: Mapping[str, Tensor], images: int) -> tuple[Array, Array]:
        """Quantised coefficients and their steps."""
        for name in ("head", self.pixels):
            if name not in numbers or numbers[name].dtype != torch.uint8 or numbers[name].ndim != 1:
                raise refuse(f"codec.safetensors: {name}", "other numbers", "bytes, as JPEG files have them")
        head, data = (numbers[name].numpy().tobytes() for name in ("head", self.pixels))
        if self.stream:
            _, _, steps_k = jpeg_files.read(head, [], self.layout)
            return jpeg_stream.decode(data, images, self.layout), steps_k
        lengths = numbers["lengths"]
        total = int(lengths.long().sum())
        if lengths.is_floating_point() or int(lengths.min()) < 1 or total != len(data):
            raise refuse("codec.safetensors: lengths", total, f"lengths of scans, {len(data)} in all")
        ends = lengths.long().cumsum(0).tolist()
        scans = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        levels, _, steps_k = jpeg_files.read(head, scans, self.layout)
        return levels, steps_k


def as_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())
