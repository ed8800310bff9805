"""The strongest control at equal bytes: what it may choose from keeps the budget, and the best by validation is taken."""

from __future__ import annotations

import torch

from rayd.config import DataConfig
from rayd.data.load import load
from rayd.data.sources.decode import compressed, formats
from rayd.data.transform import Transform
from rayd.evaluate import coreset
from rayd.evaluate.batches import ImageSet
from rayd.run import compressed as module
from rayd.run.compressed import heights, in_files, in_one_head, networks, strongest

ROOM = 12_000


def surroundings():
    train = load(DataConfig(name="digits")).train
    orders = coreset.orders("random", train, len(train), 0, None)
    return train, orders, Transform.fit(train, "normalise")


def test_every_way_keeps_the_bytes_and_more_bits_mean_fewer_images():
    train, orders, transform = surroundings()
    jpeg = [len(in_one_head(train, orders, ROOM, transform, (8, bits))) for bits in module.BITS]
    assert jpeg == sorted(jpeg, reverse=True) and jpeg[0] > jpeg[-1]
    for format in formats():
        images = in_files(train, coreset.in_turn(orders, len(train)), ROOM, format, (8, 40.0))
        if images is None:
            continue
        assert len(images) >= len(train.classes)
        least = [len(compressed(pixels, format, 0)) for pixels in train.pixels_NCHW[:20]]
        assert len(images) <= ROOM / min(least)


def test_a_format_whose_files_are_too_large_is_left_out():
    train, orders, _ = surroundings()
    assert in_files(train, coreset.in_turn(orders, len(train)), ROOM, "webp", (8, 0.01)) is None


def test_the_one_that_is_best_on_validation_after_the_whole_recipe_is_taken():
    """Of the four that lead after a part of it."""
    train, orders, transform = surroundings()
    short: list[ImageSet] = []
    whole: list[ImageSet] = []

    def accuracy(source: ImageSet, part: int) -> float:
        (whole if part == 1 else short).append(source)
        return 0.9 - 0.01 * len(short) if part > 1 else [0.5, 0.4, 0.7, 0.6][len(whole) - 1]

    assert strongest(train, orders, ROOM, transform, accuracy) is short[2]
    assert whole == short[:4] and networks(train.spec) >= len(short) / 4 + 4


def test_images_are_those_of_the_order():
    train, orders, transform = surroundings()
    source = in_one_head(train, orders, 60_000, transform, (8, 6.0))
    images, _ = source.decode(torch.arange(10))
    real = transform(train.pixels_NCHW[coreset.in_turn(orders, 10)])
    gap = (images.float() - real).square().mean() / real.square().mean()
    assert float(gap) < 0.3


def test_large_images_are_tried_at_half_their_side_too():
    """For the same bits a pixel four times as many fit, and they are shown at the whole side."""
    train = load(DataConfig(name="generated", size=64, count=200, classes=2)).train
    orders = coreset.orders("random", train, len(train), 0, None)
    transform = Transform.fit(train, "normalise")
    assert heights(train.spec) == (64, 32) and networks(train.spec) > networks(
        load(DataConfig(name="digits")).train.spec
    )
    whole, half = (in_one_head(train, orders, 30_000, transform, (height, 3.5)) for height in (64, 32))
    assert len(half) > 3 * len(whole)
    shown = [whole, half]
    for format in formats():
        images = in_files(train, coreset.in_turn(orders, len(train)), 60_000, format, (32, 6.0))
        shown += [] if images is None else [ImageSet.of(images, transform)]
    assert all(source.decode(torch.arange(2))[0].shape[-2:] == (64, 64) for source in shown) and len(shown) > 2


def test_other_formats_are_tried_where_jpeg_is_best():
    train = load(DataConfig(name="generated", size=64, count=200, classes=2)).train
    orders = coreset.orders("random", train, len(train), 0, None)
    tried: list[int] = []

    def accuracy(source: ImageSet, part: int) -> float:
        tried.append(part)
        return 0.5 + 0.01 * len(tried)

    strongest(train, orders, 60_000, Transform.fit(train, "normalise"), accuracy)
    short = sum(part > 1 for part in tried)
    assert 2 * len(module.BITS) < short <= 2 * len(module.BITS) + module.OTHERS * len(formats())
    assert len(tried) - short == module.FINALISTS
