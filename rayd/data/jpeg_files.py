"""Baseline JPEG files (ITU-T T.81), written from quantised coefficients and read back.

All files of a set share one head (tables and size), so that a set is stored as the head, the scans and their lengths; a file
is the head, one scan and the end marker (`file`). Huffman codes are the best for the set (annex K.2).

Shapes: U images, B blocks of an image in the order of the scan, 64 coefficients of a block in zigzag order. A minimum coded
unit is one block of each channel, or, where the two colour channels have half the sides (`half`), four of luma and one each.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayd.errors import Refused, refuse

Array = np.ndarray[Any, Any]
END = b"\xff\xd9"
ZIGZAG = np.array(sorted(range(64), key=lambda k: (k // 8 + k % 8, k // 8 if (k // 8 + k % 8) % 2 else k % 8)))
"""Row-major place of the k-th coefficient of a scan."""
LUMA = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
CHROMA = np.full((8, 8), 99)
CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
"""Quantisation tables of annex K.1, row by row."""
FLAT = 16, 32  # steps of luma and of colour, for every frequency
SIZE = np.array([0] + [int(v).bit_length() for v in range(1, 1 << 15)])
"""Bits of a magnitude."""
LONGEST = 16
RUNS, STOP = 0xF0, 0x00
"""Symbols: sixteen zeros, end of the block."""


@dataclass(frozen=True)
class Layout:
    """How an image lies in its file."""

    height: int
    width: int
    channels: int
    half: bool = False
    """Colour channels of half the sides (4:2:0); else of all of them (4:4:4)."""

    @property
    def units(self) -> tuple[int, int]:
        """Coded units, down and across."""
        side = 16 if self.half else 8
        return -(-self.height // side), -(-self.width // side)

    @property
    def order(self) -> tuple[int, ...]:
        """Channels of the blocks of one unit."""
        return (0,) if self.channels == 1 else (0, 0, 0, 0, 1, 2) if self.half else (0, 1, 2)

    @property
    def channel_B(self) -> Array:
        return np.tile(self.order, self.units[0] * self.units[1])

    @property
    def blocks(self) -> int:
        return len(self.order) * self.units[0] * self.units[1]


def steps(quality: float, channels: int = 3, flat: bool = False) -> Array:
    """Quantisation steps [1 or 2, 64] in zigzag order: those of annex K.1, scaled as libjpeg does; any quality above 0.
    `flat`: one for luma and one for colour, the least error for their bits; the highest frequency is rounded up first."""
    scale = 50 / quality if quality < 50 else 2 - quality / 50
    both = np.repeat(FLAT, 64).reshape(2, 64) if flat else np.stack([LUMA, CHROMA]).reshape(2, 64)[:, ZIGZAG]
    up = np.arange(64) / 64 if flat else 0.5
    return np.clip(np.floor(both[: min(channels, 2)] * scale + up), 1, 255).astype(np.int64)


@dataclass(frozen=True)
class Symbols:
    """What a set's scans say, in order: image, table (DC, AC of luma, DC, AC of colour), symbol, the bits behind it."""

    image: Array
    table: Array
    symbol: Array
    extra: Array
    extra_bits: Array

    def counts(self) -> Array:
        return np.bincount(self.table * 256 + self.symbol, minlength=1024).reshape(4, 256)


def symbols(levels_UBk: Array, layout: Layout) -> Symbols:
    """Of quantised coefficients."""
    images, blocks, _ = levels_UBk.shape
    channel_B = layout.channel_B
    flat = levels_UBk.reshape(-1, 64).astype(np.int64)
    difference = flat[:, 0].reshape(images, blocks).copy()
    for channel in range(layout.channels):
        places = np.flatnonzero(channel_B == channel)
        difference[:, places[1:]] -= flat[:, 0].reshape(images, blocks)[:, places[:-1]]
    block, place = np.nonzero(flat[:, 1:])
    place = place + 1
    value = flat[block, place]
    first = np.r_[True, block[1:] != block[:-1]] if len(block) else np.zeros(0, bool)
    before = np.where(first, 0, np.r_[0, place[:-1]]) if len(block) else place
    run = place - before - 1
    last = np.zeros(len(flat), np.int64)
    last[block] = place  # the latest of a block wins: places ascend
    open_blocks = np.flatnonzero(last < 63)
    times = run // 16 + 1
    of = np.repeat(np.arange(len(block)), times)

    def extra_of(value: Array, size: Array) -> Array:
        return np.where(value < 0, value + (1 << size) - 1, value)

    is_value = np.r_[of[1:] != of[:-1], True] if len(of) else np.zeros(0, bool)
    size = SIZE[np.abs(value)]
    every = np.arange(len(flat))
    dc = difference.reshape(-1)
    dc_size = SIZE[np.abs(dc)]
    where = np.concatenate([every * 65, block[of] * 65 + place[of], open_blocks * 65 + 64])
    order = np.argsort(where, kind="stable")
    none = np.zeros_like(open_blocks)
    parts = (
        (dc_size, np.where(is_value, (run[of] % 16) * 16 + size[of], RUNS), none + STOP),
        (extra_of(dc, dc_size), np.where(is_value, extra_of(value, size)[of], 0), none),
        (dc_size, np.where(is_value, size[of], 0), none),
        (np.zeros_like(every), np.ones_like(of), none + 1),
        (every, block[of], open_blocks),
    )
    symbol, extra, bits, is_ac, at = (np.concatenate(part)[order] for part in parts)
    table = is_ac + 2 * (channel_B[at % blocks] > 0)
    return Symbols(at // blocks, table, symbol, extra, bits)


# --- Huffman codes ----------------------------------------------------------------------------------------------------


def code_lengths(counts: Array) -> Array:
    """Bits of each of 256 symbols under the best code of at most 16 bits without the word of all ones; 0: never used."""
    if not counts.any():
        return np.zeros(256, np.int64)
    frequency = np.append(counts, 1).astype(np.int64)
    groups = {int(symbol): [int(symbol)] for symbol in np.flatnonzero(frequency)}
    weight = {symbol: int(frequency[symbol]) for symbol in groups}
    bits = np.zeros(257, np.int64)
    while len(groups) > 1:
        low, next_low = sorted(groups, key=lambda s: (weight[s], -s))[:2]
        groups[low] += groups.pop(next_low)
        weight[low] += weight.pop(next_low)
        bits[groups[low]] += 1
    number = np.bincount(bits[bits > 0], minlength=64)
    for length in range(len(number) - 1, LONGEST, -1):
        while number[length] > 0:
            shorter = length - 2
            while number[shorter] == 0:
                shorter -= 1
            number[length] -= 2
            number[length - 1] += 1
            number[shorter + 1] += 2
            number[shorter] -= 1
    longest = int(np.flatnonzero(number[: LONGEST + 1])[-1])
    number[longest] -= 1  # the reserved word
    used = sorted(np.flatnonzero(counts), key=lambda s: (bits[s], s))
    lengths = np.zeros(256, np.int64)
    lengths[used] = np.repeat(np.arange(LONGEST + 1), number[: LONGEST + 1])
    return lengths


def all_lengths(counts_4x256: Array) -> Array:
    return np.stack(list(map(code_lengths, counts_4x256)))


def words(lengths: Array) -> tuple[Array, Array]:
    """The code words of all symbols, and the symbols in the order of their words."""
    order = np.array(sorted(np.flatnonzero(lengths), key=lambda s: (lengths[s], s)), np.int64)
    code = np.zeros(256, np.int64)
    word = length = 0
    for symbol in order:
        word <<= int(lengths[symbol]) - length
        length = int(lengths[symbol])
        code[symbol] = word
        word += 1
    return code, order


def scan_bits(what: Symbols, lengths_4x256: Array) -> int:
    """Bits of all scans, before stuffing."""
    return int((what.counts() * lengths_4x256).sum() + what.extra_bits.sum())


# --- writing ----------------------------------------------------------------------------------------------------------


def write(levels_UBk: Array, layout: Layout, steps_k: Array) -> tuple[bytes, list[bytes]]:
    """Head and scans of a set."""
    what = symbols(levels_UBk, layout)
    lengths = all_lengths(what.counts())
    codes = np.stack([words(one)[0] for one in lengths])
    length = lengths[what.table, what.symbol] + what.extra_bits
    value = (codes[what.table, what.symbol] << what.extra_bits) | what.extra
    size_U = np.bincount(what.image, weights=length, minlength=len(levels_UBk)).astype(np.int64)
    padded_U = -(-size_U // 8) * 8
    start_U = np.cumsum(padded_U) - padded_U
    within = np.cumsum(length) - length
    first_U = np.cumsum(size_U) - size_U
    begin = start_U[what.image] + within - first_U[what.image]
    bits = np.ones(int(padded_U.sum()), np.uint8)
    which = np.repeat(np.arange(len(length)), length)
    offset = np.arange(len(which)) - np.repeat(within, length)
    bits[begin[which] + offset] = (value[which] >> (length[which] - 1 - offset)) & 1
    data = np.packbits(bits).tobytes()
    ends = np.cumsum(padded_U) // 8
    scans = [
        data[end - size // 8 : end].replace(b"\xff", b"\xff\x00") for end, size in zip(ends, padded_U, strict=True)
    ]
    return _head(layout, steps_k, lengths), scans


def _head(layout: Layout, steps_k: Array, lengths: Array) -> bytes:
    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    tables = len(steps_k)
    channels = [(c + 1, 0x22 if c == 0 and layout.half else 0x11, min(c, 1)) for c in range(layout.channels)]
    out = b"\xff\xd8"
    out += segment(0xDB, b"".join(bytes([t]) + bytes(steps_k[t].tolist()) for t in range(tables)))
    frame = struct.pack(">BHHB", 8, layout.height, layout.width, layout.channels)
    out += segment(0xC0, frame + b"".join(bytes(channel) for channel in channels))
    huffman = b""
    for t in range(2 * tables):
        order = words(lengths[t])[1]
        number = np.bincount(lengths[t][order], minlength=LONGEST + 1)[1:]
        huffman += bytes([(t % 2) << 4 | t // 2]) + bytes(number.tolist()) + bytes(order.tolist())
    out += segment(0xC4, huffman)
    selectors = b"".join(bytes([number, 0x11 * table]) for number, _, table in channels)
    return out + segment(0xDA, bytes([layout.channels]) + selectors + b"\x00\x3f\x00")


def file(head: bytes, scan: bytes) -> bytes:
    """An ordinary JPEG file."""
    return head + scan + END


def read(head: bytes, scans: list[bytes], expected: Layout | None = None) -> tuple[Array, Layout, Array]:
    """Quantised coefficients, layout and steps of a set that `write` wrote; of the `expected` layout, or refused."""
    try:
        layout, steps_k, tables = _parse_head(head)
    except (IndexError, ValueError, struct.error) as error:
        raise Refused(f"JPEG head: damaged ({error}); fetch the artifact again") from error
    if expected is not None and layout != expected:
        raise refuse("JPEG head", layout, f"{expected}, as the codec describes it")
    levels = np.zeros((len(scans), layout.blocks, 64), np.int16)
    for image, scan in enumerate(scans):
        _read_scan(scan.replace(b"\xff\x00", b"\xff"), layout, tables, levels[image])
    return levels, layout, steps_k


def _parse_head(head: bytes) -> tuple[Layout, Array, list[list[tuple[int, int]]]]:
    at, layout, steps_k = 2, None, []
    tables: list[list[tuple[int, int]]] = [[], [], [], []]
    while at < len(head):
        marker, size = head[at + 1], struct.unpack(">H", head[at + 2 : at + 4])[0]
        body = head[at + 4 : at + 2 + size]
        at += 2 + size
        if marker == 0xDB:
            steps_k = [np.frombuffer(body, np.uint8)[i + 1 : i + 65].astype(np.int64) for i in range(0, len(body), 65)]
        elif marker == 0xC0:
            _, height, width, channels = struct.unpack(">BHHB", body[:6])
            layout = Layout(height, width, channels, body[7] == 0x22)
        while marker == 0xC4 and body:
            number = np.frombuffer(body[1:17], np.uint8)
            total = int(number.sum())
            lengths = np.zeros(256, np.int64)
            lengths[np.frombuffer(body[17 : 17 + total], np.uint8)] = np.repeat(np.arange(1, 17), number)
            tables[body[0] >> 4 | (body[0] & 15) << 1] = _lookup(lengths)
            body = body[17 + total :]
    if layout is None or layout.channels not in (1, 3) or len(steps_k) != min(layout.channels, 2):
        raise Refused("JPEG head: no frame or no table in it; fetch the artifact again")
    if any(len(one) != 64 for one in steps_k) or any(not table for table in tables[: 2 * len(steps_k)]):
        raise Refused("JPEG head: a table is missing or short; fetch the artifact again")
    return layout, np.stack(steps_k), tables


def _lookup(lengths: Array) -> list[tuple[int, int]]:
    """(bits, symbol) of every 16 bits that a scan may go on with."""
    code, order = words(lengths)
    out = [(0, 0)] * (1 << LONGEST)
    for symbol in order.tolist():
        free = LONGEST - int(lengths[symbol])
        first = int(code[symbol]) << free
        out[first : first + (1 << free)] = [(int(lengths[symbol]), symbol)] * (1 << free)
    return out


def _read_scan(data: bytes, layout: Layout, tables: list[list[tuple[int, int]]], levels_Bk: Array) -> None:
    padded = int.from_bytes(data + b"\xff" * 4)
    total = 8 * len(data) + 32
    before = [0, 0, 0]
    at = 0

    def number(size: int) -> int:
        nonlocal at
        at += size
        value = (padded >> (total - at)) & ((1 << size) - 1)
        return value if size == 0 or value >> (size - 1) else value - (1 << size) + 1

    for block, channel in enumerate(layout.channel_B.tolist()):
        dc, ac = tables[2 * (channel > 0)], tables[2 * (channel > 0) + 1]
        if at > total - LONGEST:
            raise Refused("JPEG scan: ends before its last block; fetch the artifact again")
        bits, size = dc[(padded >> (total - at - LONGEST)) & 0xFFFF]
        at += bits
        before[channel] += number(size)
        levels_Bk[block, 0] = before[channel]
        place = 1
        while place < 64:
            bits, symbol = ac[(padded >> (total - at - LONGEST)) & 0xFFFF]
            if bits == 0 or at > total - LONGEST:
                raise Refused("JPEG scan: not a word of its code; fetch the artifact again")
            at += bits
            if symbol == STOP:
                break
            place += symbol >> 4
            if place > 63:
                raise Refused("JPEG scan: a block has more than 64 coefficients; fetch the artifact again")
            if symbol != RUNS:
                levels_Bk[block, place] = number(symbol & 15)
            place += 1
