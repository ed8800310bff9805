"""The strongest control at equal bytes: real images under the best of many compressions, chosen on the validation split.

Baseline JPEG with one head for all files (as the codec `jpeg` stores them), and files of WebP and AVIF where Pillow has
them; each at several numbers of bits a pixel, so that more images of lower quality stand against fewer of a higher one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import itemgetter

import torch
from torch import Tensor

from rayd.artifact.write import as_stored
from rayd.data.images import Images
from rayd.data.sources.decode import compressed, decompressed, formats
from rayd.data.transform import Transform
from rayd.distill.budget import Budget
from rayd.evaluate import coreset
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.row import LABEL_BYTES
from rayd.methods.jpeg import Jpeg
from rayd.seeds import generator

log = logging.getLogger(__name__)

BITS = (1.0, 1.5, 2.2, 3.5, 6.0)
"""Of a pixel."""
SHORT, FINALISTS = 4, 4
"""A way is tried for a quarter of the recipe; so many of them meet again under all of it."""
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

    leading: list[tuple[float, str, ImageSet]] = []
    for way, source in ways(train, orders, room, transform):
        leading.append((reached(way, source, SHORT), way, source))
        leading = sorted(leading, key=itemgetter(0), reverse=True)[:FINALISTS]
    final = [(reached(way, source, 1), source) for _, way, source in leading]
    return max(final, key=itemgetter(0))[1]


def networks() -> float:
    """Networks of the whole recipe that choosing costs at most."""
    return len(BITS) * (1 + len(formats())) / SHORT + FINALISTS


def ways(train: Images, orders: list[Tensor], room: int, transform: Transform) -> Iterator[tuple[str, ImageSet]]:
    spec = train.spec
    everything = min(map(len, orders)) * spec.classes
    for bits in BITS:
        budget, config = Budget(bytes=room), Jpeg.Config(bits=bits)
        fitted = config.fit(budget, spec)
        if (fitted.images or 0) > everything:
            fitted = replace(config, images=everything).fit(budget, spec)
        codec = fitted.build(spec, generator(0, "compressed"))
        codec.enter(transform, budget)
        codec.encode(lambda c, n: transform(train.pixels_NCHW[orders[c][:n]]), generator(0, "compressed"))
        yield f"jpeg, {bits:g} bits a pixel", ImageSet.of(as_stored(codec))
        for format in formats():
            images = in_files(train, coreset.in_turn(orders, len(train)), room, bits, format)
            if images is not None:
                yield f"{format}, {bits:g} bits a pixel", ImageSet.of(images, transform)


def in_files(train: Images, order: Tensor, room: int, bits: float, format: str) -> Images | None:
    """As many as fit, as they look once compressed; none where a file of no quality is too large."""
    spec = train.spec
    wanted = max(bits * spec.shape[-2] * spec.shape[-1] / 8, room / len(order) - LABEL_BYTES)

    def size(quality: int) -> float:
        sample = [compressed(train.pixels_NCHW[i], format, quality) for i in order[:SAMPLE]]
        return sum(map(len, sample)) / len(sample)

    low, high = 0, 100
    if size(low) > wanted:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= wanted else (low, middle)
    decoded: list[Tensor] = []
    total = 0
    for index in order:
        data = compressed(train.pixels_NCHW[index], format, low)
        total += len(data) + LABEL_BYTES
        if total > room and len(decoded) >= spec.classes:
            break
        decoded.append(decompressed(data))
    return replace(train.select(order[: len(decoded)]), pixels_NCHW=torch.stack(decoded))
