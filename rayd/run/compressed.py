"""The strongest control at equal bytes: real images under the best of many compressions, chosen on the validation split.

Baseline JPEG with one head for all files (as the codec `jpeg` stores them), and files of WebP and AVIF where Pillow has
them; each at several numbers of bits a pixel, so that more images of lower quality stand against fewer of a higher one.
Large images are tried at half their side too, shown at the whole of it: four times as many for the same bits a pixel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.artifact.write import as_stored
from rayd.data.images import Images, Spec
from rayd.data.sources.decode import compressed, decompressed, formats
from rayd.data.transform import Transform
from rayd.distill.budget import Budget
from rayd.evaluate import coreset
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.row import LABEL_BYTES
from rayd.methods.jpeg import Jpeg
from rayd.seeds import generator

log = logging.getLogger(__name__)

Way = tuple[int, float]
"""Height of a stored image, bits of one of its pixels."""

BITS = (1.0, 1.5, 2.2, 3.5, 6.0)
"""Of a stored pixel."""
LARGE = 64
"""Pixels of a side from which images are tried at half of it too."""
SHORT, FINALISTS = 4, 4
"""A way is tried for a quarter of the recipe; so many of them meet again under all of it."""
OTHERS = 2
"""Numbers of bits and sizes, those that are best for JPEG, at which the other formats are tried."""
SAMPLE = 64
"""Files by which a quality is chosen."""


def strongest(
    train: Images,
    orders: list[Tensor],
    room: int,
    transform: Transform,
    accuracy: Callable[[ImageSet, int], float],
) -> ImageSet:
    """Of all ways to fill `room` bytes, the one of the highest accuracy on validation; `orders`: of each class, best first.

    `accuracy(set, n)` is that after an n-th of the recipe. The best ways of a short training meet again under the whole
    recipe, since longer training favours more images of a lower quality.
    """

    def reached(way: str, source: ImageSet, part: int) -> float:
        result = accuracy(source, part)
        log.info("compressed coreset  %s: %d images, %.1f %% on validation after 1/%d of the recipe", way, len(source),
                 100 * result, part)  # fmt: skip
        return result

    leading: list[tuple[float, str, ImageSet, Way]] = []

    def enter(name: str, way: Way, source: ImageSet) -> None:
        leading.append((reached(name, source, SHORT), name, source, way))
        leading.sort(key=itemgetter(0), reverse=True)
        del leading[FINALISTS:]

    for way in product(heights(train.spec), BITS):
        enter(name_of("jpeg", way, train.spec), way, in_one_head(train, orders, room, transform, way))
    for way in [way for *_, way in leading[:OTHERS]]:
        for format in formats():
            images = in_files(train, coreset.in_turn(orders, len(train)), room, format, way)
            if images is not None:
                enter(name_of(format, way, train.spec), way, ImageSet.of(images, transform))
    final = [(reached(name, source, 1), source) for _, name, source, _ in leading]
    return max(final, key=itemgetter(0))[1]


def heights(spec: Spec) -> tuple[int, ...]:
    """Of a stored image."""
    height = spec.shape[-2]
    return (height, height // 2) if height >= LARGE else (height,)


def networks(spec: Spec) -> float:
    """Networks of the whole recipe that choosing costs at most."""
    return (len(heights(spec)) * len(BITS) + OTHERS * len(formats())) / SHORT + FINALISTS


def name_of(format: str, way: Way, spec: Spec) -> str:
    height, bits = way
    return f"{format}, {bits:g} bits a pixel" + (f", {height} px high" if height < spec.shape[-2] else "")


def in_one_head(train: Images, orders: list[Tensor], room: int, transform: Transform, way: Way) -> ImageSet:
    """Baseline JPEG, as the codec stores it."""
    height, bits = way
    spec, budget = train.spec, Budget(bytes=room)
    everything = min(map(len, orders)) * spec.classes
    config = Jpeg.Config(bits=bits, side=height)
    fitted = config.fit(budget, spec)
    if (fitted.images or 0) > everything:
        fitted = replace(config, images=everything).fit(budget, spec)
    codec = fitted.build(spec, generator(0, "compressed"))
    codec.enter(transform, budget)
    codec.encode(lambda c, n: transform(train.pixels_NCHW[orders[c][:n]]), generator(0, "compressed"))
    return ImageSet.of(as_stored(codec))


def in_files(train: Images, order: Tensor, room: int, format: str, way: Way) -> Images | None:
    """As many as fit, as they look once compressed; none where a file of no quality is too large."""
    spec, (height, bits) = train.spec, way
    whole = spec.shape[-2:]
    size = (height, max(1, round(whole[1] * height / whole[0])))
    wanted = max(bits * size[0] * size[1] / 8, room / len(order) - LABEL_BYTES)

    def packed(index: Tensor, quality: int) -> bytes:
        return compressed(resized(train.pixels_NCHW[index], size, "area"), format, quality)

    def average(quality: int) -> float:
        return sum(len(packed(index, quality)) for index in order[:SAMPLE]) / len(order[:SAMPLE])

    low, high = 0, 100
    if average(low) > wanted:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if average(middle) <= wanted else (low, middle)
    decoded: list[Tensor] = []
    total = 0
    for index in order:
        data = packed(index, low)
        total += len(data) + LABEL_BYTES
        if total > room and len(decoded) >= spec.classes:
            break
        decoded.append(resized(decompressed(data), whole, "bilinear"))
    return replace(train.select(order[: len(decoded)]), pixels_NCHW=torch.stack(decoded))


def resized(pixels_CHW: Tensor, size: tuple[int, ...], mode: str) -> Tensor:
    """Of uint8."""
    if pixels_CHW.shape[-2:] == size:
        return pixels_CHW
    return F.interpolate(pixels_CHW[None].float(), size=size, mode=mode)[0].round().clamp(0, 255).to(torch.uint8)
