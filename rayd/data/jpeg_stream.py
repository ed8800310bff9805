"""The quantised coefficients of a whole set of JPEG images as one stream, 13 to 15 % shorter than scans.

Each coefficient is coded by how often its values came in its context so far: its channel and frequency, the magnitudes at
higher frequencies of the block, at its frequency in the blocks to the left and above, and in the other colour. Frequencies
come from the highest to the mean of the block, which is coded as the difference from its neighbours. The counts start the
same and grow alike on both sides, so that no table is stored; all is whole numbers, the same on every machine.

The coder is range ANS (Duda, arXiv 1311.2540). LANES images are coded side by side, each with a state of its own, so that a
step is a handful of array operations. A large value is a symbol for its range, and bits that say where in it.

Stream: the number of words (4 bytes), of bytes of such bits (4), the first states (4 a lane), words (2 each), these bytes.
Shapes: U images, B blocks in the order of the scan, 64 coefficients in zigzag order; L lanes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rayd.data.jpeg_files import ZIGZAG, Array, Layout
from rayd.errors import Refused

LANES = 256
"""Part of the format, as all numbers here are. Half as many save 0.5 % more and take half as long again."""
EXACT = 11
"""The largest magnitude that has a symbol of its own. The others have one for their range, and a sign."""
EXTRA = np.arange(1, 11)
"""Bits that say where in its range a magnitude is."""
FIRST = EXACT + 1 + np.cumsum(2**EXTRA) - 2**EXTRA
"""The least magnitude of each range."""
SYMBOLS = 2 * EXACT + 1 + 2 * len(EXTRA)
PRECISION, WORD = 15, 16
"""Bits of the sum of the frequencies, and of what a state gives out at a time."""
FINE = 6
"""Contexts of one frequency and activity."""
PRIOR, SCALE, GROWTH = 8, 1 << 10, 24
"""Values that a context counts as seen beforehand, the size of one, and of one where contexts are taken together."""
AHEAD = ((1, 0, 2), (0, 1, 2), (1, 1, 1), (2, 0, 1), (0, 2, 1))
"""Higher frequencies that tell of one: down, across, weight."""
ACTIVITY = np.array([0, 1, 2, 3, 4, 4, 5, 5, 5, 6, 6, 6, 6, 7])
"""Classes of the weighted sum of these, the last for all that are larger."""
CONTEXTS = 3 * 64 * 8 * FINE
"""Channels, frequencies, activities, and what lies beside."""
DAMAGED = "stream of coefficients: damaged; fetch the artifact again"
SMALL = 4
"""Magnitudes above count as this in a context."""


@dataclass(frozen=True)
class Contexts:
    """Which context each coefficient of a group of images has; those that come later in the order are not looked at."""

    layout: Layout

    @cached_property
    def neighbours(self) -> list[tuple[int, int, int, int]]:
        """Of each block: its channel, and the blocks to the left, above, and of the other colour; -1: none."""
        down, across = self.layout.units
        side = 2 if self.layout.half else 1
        places: list[tuple[int, int, int]] = []
        for unit in range(down * across):
            row, column = divmod(unit, across)
            for number, channel in enumerate(self.layout.order):
                if channel == 0 and side == 2:
                    places.append((0, 2 * row + number // 2, 2 * column + number % 2))
                else:
                    places.append((channel, row, column))
        where = {place: block for block, place in enumerate(places)}
        return [
            (c, where.get((c, y, x - 1), -1), where.get((c, y - 1, x), -1), where.get((1, y, x), -1) if c == 2 else -1)
            for c, y, x in places
        ]

    @cached_property
    def higher(self) -> list[list[tuple[int, int]]]:
        """Of each frequency: the places of those that tell of it, and their weights."""
        place = np.argsort(ZIGZAG)
        out = []
        for where in ZIGZAG.tolist():
            row, column = divmod(where, 8)
            near = [(row + y, column + x, weight) for y, x, weight in AHEAD if row + y < 8 and column + x < 8]
            out.append([(int(place[y * 8 + x]), weight) for y, x, weight in near])
        return out

    def steps(self, levels_LBk: Array) -> Iterator[tuple[int, int, Array, Array]]:
        """Block, frequency, the context of each lane, and what its value is coded relative to. A decoder writes the values
        of a step into `levels_LBk` before it asks for the next."""
        sizes_LBk = np.minimum(np.abs(levels_LBk), SMALL).astype(np.int64)
        none = np.zeros(len(levels_LBk), np.int64)
        for block, (channel, left, above, other) in enumerate(self.neighbours):
            for k in range(63, -1, -1):
                activity = none
                for place, weight in self.higher[k]:
                    activity = activity + weight * sizes_LBk[:, block, place]
                key = ACTIVITY[np.minimum(activity, len(ACTIVITY) - 1)]
                beside = sum((sizes_LBk[:, one, k] for one in (left, above) if one >= 0), none)
                colour = np.minimum(sizes_LBk[:, other, k], 1) if other >= 0 else none
                context = ((channel * 64 + k) * 8 + key) * FINE + np.minimum(beside, 2) * 2 + colour
                base = none
                if k == 0:
                    known = [levels_LBk[:, one, 0].astype(np.int64) for one in (left, above) if one >= 0]
                    base = sum(known, none) // max(len(known), 1)
                yield block, k, context, base
                sizes_LBk[:, block, k] = np.minimum(np.abs(levels_LBk[:, block, k]), SMALL)


class Counts:
    """How often each symbol came in each context, and in all that share its frequency and activity: what a context begins
    with, as if it had seen PRIOR symbols of it."""

    def __init__(self, start: Array) -> None:
        self.table = np.zeros((CONTEXTS, len(start)), np.int64)
        self.wide = np.tile(start, (CONTEXTS // FINE, 1))

    def bounds(self, context_L: Array) -> Array:
        """[L, symbols + 1]: where the range of each symbol begins; the last is 2**PRECISION."""
        wide = self.wide[context_L // FINE]
        counts = self.table[context_L] * SCALE + wide * (PRIOR * SCALE) // wide.sum(1, keepdims=True)
        ends = counts.cumsum(1)
        out = np.zeros((len(ends), ends.shape[1] + 1), np.int64)
        out[:, 1:] = ends * ((1 << PRECISION) - ends.shape[1]) // ends[:, -1:] + np.arange(1, ends.shape[1] + 1)
        return out

    def add(self, context_L: Array, symbol_L: Array) -> None:
        np.add.at(self.table, (context_L, symbol_L), 1)
        np.add.at(self.wide, (context_L // FINE, symbol_L), GROWTH)


def fresh() -> tuple[Counts, Counts]:
    """Of zero against the rest, and of the values that are not zero."""
    values = np.ones(SYMBOLS, np.int64)
    values[: 2 * EXACT + 1] += 96 // (1 + abs(np.arange(-EXACT, EXACT + 1))) ** 3
    return Counts(np.array([4, 4])), Counts(values)


def split(value_L: Array) -> tuple[Array, Array, Array]:
    """Symbols, and the extra bits behind them: their value and their number."""
    size = np.abs(value_L)
    which = np.searchsorted(FIRST, size, side="right") - 1
    symbol = np.where(which < 0, value_L + EXACT, 2 * EXACT + 1 + 2 * which + (value_L < 0))
    return symbol, np.where(which < 0, 0, size - FIRST[which]), np.where(which < 0, 0, EXTRA[which])


def encode(levels_UBk: Array, layout: Layout) -> bytes:
    contexts = Contexts(layout)
    zeros, values = fresh()
    ranges: list[tuple[Array, Array, Array]] = []
    extras: list[tuple[Array, Array]] = []

    def code(counts: Counts, lanes: Array, context: Array, symbol: Array) -> None:
        bounds, rows = counts.bounds(context), np.arange(len(context))
        begin = bounds[rows, symbol]
        ranges.append((lanes, begin, bounds[rows, symbol + 1] - begin))
        counts.add(context, symbol)

    for first in range(0, len(levels_UBk), LANES):
        group = levels_UBk[first : first + LANES]
        every = np.arange(len(group))
        for block, k, context_L, base_L in contexts.steps(group):
            value_L = group[:, block, k] - base_L
            code(zeros, every, context_L, (value_L != 0).astype(np.int64))
            some = np.flatnonzero(value_L)
            if len(some):
                symbol, extra, bits = split(value_L[some])
                code(values, some, context_L[some], symbol)
                extras.append((extra[bits > 0], bits[bits > 0]))
    state = np.full(min(LANES, len(levels_UBk)), 1 << WORD, np.int64)
    words: list[Array] = [np.zeros(0, "<u2")]
    for lanes, begin, size in reversed(ranges):
        own = state[lanes]
        full = own >= size << (32 - PRECISION)
        words.append((own[full] & 0xFFFF).astype("<u2"))
        own = np.where(full, own >> WORD, own)
        state[lanes] = (own // size << PRECISION) + own % size + begin
    stream = np.concatenate(words[::-1])
    none = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    value, bits = (np.concatenate(part) for part in zip(none, *extras, strict=True))
    of = np.repeat(np.arange(len(bits)), bits)
    down = np.cumsum(bits)[of] - 1 - np.arange(len(of))
    tail = np.packbits((value[of] >> down) & 1).tobytes()
    return struct.pack("<II", len(stream), len(tail)) + state.astype("<u4").tobytes() + stream.tobytes() + tail


def decode(data: bytes, images: int, layout: Layout) -> Array:
    """Quantised coefficients [U, B, 64] of a stream that `encode` wrote."""
    contexts = Contexts(layout)
    zeros, values = fresh()
    lanes = min(LANES, images)
    sizes = struct.unpack("<II", data[:8]) if len(data) >= 8 else (0, 0)
    if len(data) != 8 + 4 * lanes + 2 * sizes[0] + sizes[1]:
        raise Refused(DAMAGED)
    state = np.frombuffer(data, "<u4", lanes, 8).astype(np.int64)
    words = np.frombuffer(data, "<u2", sizes[0], 8 + 4 * lanes).astype(np.int64)
    tail = np.unpackbits(np.frombuffer(data, np.uint8, sizes[1], 8 + 4 * lanes + 2 * sizes[0])).astype(np.int64)
    at = taken = 0
    levels_UBk = np.zeros((images, layout.blocks, 64), np.int16)

    def symbols(counts: Counts, lanes: Array, context: Array) -> Array:
        nonlocal at
        bounds, rows = counts.bounds(context), np.arange(len(context))
        own = state[lanes]
        place = own & ((1 << PRECISION) - 1)
        symbol: Array = (bounds[:, 1:] <= place[:, None]).sum(1)
        begin = bounds[rows, symbol]
        own = (bounds[rows, symbol + 1] - begin) * (own >> PRECISION) + place - begin
        short = own < 1 << WORD
        wanted = int(short.sum())
        if at + wanted > len(words):
            raise Refused(DAMAGED)
        own[short] = own[short] << WORD | words[at : at + wanted]
        at += wanted
        state[lanes] = own
        counts.add(context, symbol)
        return symbol

    for first in range(0, images, LANES):
        group = levels_UBk[first : first + LANES]
        every = np.arange(len(group))
        for block, k, context_L, base_L in contexts.steps(group):
            some = np.flatnonzero(symbols(zeros, every, context_L))
            group[:, block, k] = base_L
            if not len(some):
                continue
            value = symbols(values, some, context_L[some]) - EXACT
            for number in np.flatnonzero(value > EXACT).tolist():
                which, negative = divmod(int(value[number]) - EXACT - 1, 2)
                bits = tail[taken : taken + EXTRA[which]]
                taken += int(EXTRA[which])
                if taken > len(tail):
                    raise Refused(DAMAGED)
                size = int(FIRST[which] + (bits << np.arange(len(bits))[::-1]).sum())
                value[number] = -size if negative else size
            group[some, block, k] += value.astype(np.int16)
    if at < len(words) or (state != 1 << WORD).any():  # what the encoder began with
        raise Refused(DAMAGED)
    return levels_UBk
