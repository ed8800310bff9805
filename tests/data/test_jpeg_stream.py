"""The stream of coefficients: what is read back is what was written, it is shorter than scans, and damage is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayd.config import DataConfig
from rayd.data import jpeg_files, jpeg_stream
from rayd.data.jpeg_files import Layout
from rayd.data.jpeg_sets import Coding
from rayd.data.load import load
from rayd.distill.libjpeg import Planes
from rayd.errors import Refused

LAYOUTS = [Layout(16, 16, 3, True), Layout(20, 16, 3), Layout(8, 8, 1)]


def levels_of(layout: Layout, images: int, spread: float = 3.0, seed: int = 0) -> np.ndarray:
    """Heavy tails, mostly zeros, as coefficients are."""
    rng = np.random.default_rng(seed)
    falling = np.exp(-np.arange(64) / 6)
    return np.clip(rng.laplace(0, spread * falling, (images, layout.blocks, 64)).round(), -1023, 1023).astype(np.int64)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("images", [1, 5, jpeg_stream.LANES + 3])
def test_what_is_read_is_what_was_written(layout, images):
    levels = levels_of(layout, images)
    data = jpeg_stream.encode(levels, layout)
    assert np.array_equal(jpeg_stream.decode(data, images, layout), levels)
    assert jpeg_stream.encode(levels, layout) == data


def test_every_value_that_a_file_can_hold():
    layout = Layout(8, 8, 1)
    levels = np.zeros((2047, 1, 64), np.int64)
    levels[:, 0, 0] = np.arange(-1023, 1024)
    levels[:, 0, 40] = np.arange(1023, -1024, -1)
    assert np.array_equal(jpeg_stream.decode(jpeg_stream.encode(levels, layout), 2047, layout), levels)


@pytest.mark.parametrize("levels", [np.zeros((3, 6, 64), np.int64), np.full((3, 6, 64), 7)])
def test_sets_without_any_detail(levels):
    layout = Layout(16, 16, 3, True)
    data = jpeg_stream.encode(levels, layout)
    assert np.array_equal(jpeg_stream.decode(data, 3, layout), levels)


def test_it_is_shorter_than_the_scans_of_real_images():
    """On digits of 8 px; where images are larger, contexts have more to say."""
    train = load(DataConfig(name="digits")).train
    layout = Layout(*train.spec.shape[1:], train.spec.shape[0])
    blocks = Planes(layout).blocks(train.pixels_NCHW[:].float())
    steps = torch.from_numpy(jpeg_files.steps(60, layout.channels))
    levels = (blocks / steps[torch.from_numpy(layout.channel_B).clamp(max=1)]).round()
    sizes = [
        sum(len(one.numpy().tobytes()) for one in Coding(layout, stream).pack(levels, steps).values())
        for stream in (False, True)
    ]
    assert sizes[1] < 0.97 * sizes[0]


def test_a_damaged_stream_is_refused():
    layout = Layout(16, 16, 3, True)
    data = jpeg_stream.encode(levels_of(layout, 20), layout)
    for cut in (0, 5, len(data) // 2, len(data) - 1):
        with pytest.raises(Refused, match="fetch the artifact again"):
            jpeg_stream.decode(data[:cut], 20, layout)
    unchecked = int.from_bytes(
        data[4:8], "little"
    )  # the bits of large values, at the end; the card's sha256 covers them
    for place in range(8, len(data) - unchecked, 97):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        with pytest.raises(Refused, match="fetch the artifact again"):
            jpeg_stream.decode(bytes(changed), 20, layout)
