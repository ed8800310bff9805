"""Baseline JPEG files: what is written is read back, by us and by Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rayd.data import jpeg_files
from rayd.data.jpeg_files import Layout
from rayd.errors import Refused

LAYOUTS = [Layout(32, 32, 3, True), Layout(32, 32, 3), Layout(28, 28, 1), Layout(47, 31, 3, True), Layout(9, 70, 3)]


def some_levels(layout, images=20, seed=0):
    rng = np.random.default_rng(seed)
    levels = rng.laplace(size=(images, layout.blocks, 64)) * np.exp(-np.arange(64) / 12) * 8
    return levels.round().astype(np.int64)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_files_are_read_back_and_open_anywhere(layout):
    levels, steps = some_levels(layout), jpeg_files.steps(60, layout.channels)
    head, scans = jpeg_files.write(levels, layout, steps)
    back, same, again = jpeg_files.read(head, scans)
    assert (back == levels).all() and same == layout and (again == steps).all()
    for scan in scans:
        picture = Image.open(io.BytesIO(jpeg_files.file(head, scan)))
        picture.load()
        assert picture.size == (layout.width, layout.height) and picture.mode == (
            "RGB" if layout.channels == 3 else "L"
        )
    table = np.array(picture.quantization[0])
    assert sorted(table) == sorted(steps[0])


def test_bits_are_counted_as_written():
    layout = LAYOUTS[0]
    levels = some_levels(layout, images=300)
    what = jpeg_files.symbols(levels, layout)
    bits = jpeg_files.scan_bits(what, jpeg_files.all_lengths(what.counts()))
    size = sum(len(scan) for scan in jpeg_files.write(levels, layout, jpeg_files.steps(50))[1])
    assert bits / 8 < size < bits / 8 + len(levels) + size / 128


def test_code_lengths_are_a_code_and_the_best_one():
    counts = np.zeros(256, np.int64)
    counts[:40] = np.fromfunction(lambda i: np.floor(1.7**i), (40,)).astype(np.int64) + 1
    lengths = jpeg_files.code_lengths(counts)
    used = lengths[lengths > 0]
    assert len(used) == 40 and used.max() <= 16
    assert (0.5**used).sum() <= 1 - 0.5**16, "the word of all ones stays free"
    few = np.zeros(256, np.int64)
    few[[3, 7, 9]] = [100, 10, 1]
    assert jpeg_files.code_lengths(few)[[3, 7, 9]].tolist() == [1, 2, 3]


def test_better_codes_than_those_of_annex_k():
    """Files of the same pixels that Pillow writes with its own tables are larger."""
    layout = LAYOUTS[0]
    levels, steps = some_levels(layout, images=1), jpeg_files.steps(75)
    head, scans = jpeg_files.write(levels, layout, steps)
    whole = jpeg_files.file(head, scans[0])
    out = io.BytesIO()
    Image.open(io.BytesIO(whole)).save(out, "jpeg", quality=75, subsampling="4:2:0")
    assert len(whole) < len(out.getvalue())


def test_zigzag_and_steps_are_those_of_the_standard():
    assert jpeg_files.ZIGZAG[:10].tolist() == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24]
    assert sorted(jpeg_files.ZIGZAG.tolist()) == list(range(64))
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "jpeg", quality=25)
    written = Image.open(io.BytesIO(out.getvalue())).quantization
    assert all(sorted(written[t]) == sorted(jpeg_files.steps(25)[t].tolist()) for t in (0, 1))


def test_a_damaged_scan_is_refused():
    layout = LAYOUTS[0]
    head, _ = jpeg_files.write(some_levels(layout), layout, jpeg_files.steps(60))
    with pytest.raises(Refused, match="scan"):
        jpeg_files.read(head, [b"\x00"])
