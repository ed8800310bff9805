"""Images per second of expert training, against the same loop over torch.nn modules: fp32, eager, the same batches.

All see the same augmented batches of uint8 images, and making them counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F

from rayd.data.augment import AugmentConfig
from rayd.data.images import Images, Spec
from rayd.data.transform import Transform
from rayd.experts.config import ExpertConfig
from rayd.experts.train import ExpertStep
from rayd.nets.convnet import NetConfig
from rayd.seeds import generator
from rayd.studies.bench import BenchRow, Timing, compared, interleaved, timings
from rayd.studies.bench.field import CLASSES, SIDE, Convolutions, convnet, started

BATCH = 256
SIZES: dict[str, list[dict[str, Any]]] = {
    "default": [{"width": 32, "field": 3, "ours": 6}, {"width": 128, "field": 1, "ours": 3}],
    "full": [{"width": 32, "field": 8, "ours": 16}, {"width": 128, "field": 4, "ours": 16}],
}
"""width, and batches in one turn of each way"""


def pictures(n: int) -> Images:
    """Random images: what they show does not change how long a step takes."""
    rng = generator(0, "bench", "experts")
    pixels = torch.randint(256, (n, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (n,), generator=rng)
    return Images(pixels, labels, tuple(map(str, range(CLASSES))), "random", {"content": ""})


def ways(width: int, field: int, ours: int) -> dict[str, Timing]:
    """Seconds an image. `field` and `ours`: batches in one turn of each."""
    images = pictures(BATCH * max(field, ours))
    transform = Transform("normalise", torch.full((3,), 0.5), torch.full((3,), 0.25))
    config = ExpertConfig(batch=BATCH, augment=AugmentConfig())
    net = NetConfig(width=width).build(Spec((3, SIDE, SIDE), CLASSES))
    expert_step = ExpertStep(config, net, transform, images, None, torch.device("cpu"), stacked=False)
    theta_KP = net.init(generator(0, "init"))[None]
    modules = started(convnet(width), theta_KP[0])
    optimiser = torch.optim.SGD(modules.parameters(), lr=config.lr, momentum=config.momentum)
    convolutions = Convolutions(width, BATCH, torch.bfloat16)
    epochs = count(1)

    def run_ours() -> float:
        for _, (x, y) in zip(range(ours), expert_step.batches([0], next(epochs)), strict=False):
            expert_step.step(theta_KP, None, x, y, config.lr)
        return BATCH * ours

    def run_field() -> float:
        epoch, augment = next(epochs), expert_step.augment
        order, rng = torch.randperm(len(images), generator=generator(0, "order", epoch)), generator(0, "augment", epoch)
        for index in order.split(BATCH)[:field]:
            x = transform(images.pixels_NCHW[index])
            x = augment(x, augment.draw(rng, len(index), tuple(x.shape[1:])))
            optimiser.zero_grad()
            F.cross_entropy(modules(x), images.labels_N[index]).backward()
            optimiser.step()
        return BATCH * field

    def floor() -> float:
        for _ in range(ours):
            convolutions()
        return BATCH * ours

    return interleaved({"field": run_field, "ours": run_ours, "floor": floor})


def rows(size: str = "default") -> Iterator[BenchRow]:
    for case in SIZES[size]:
        by_way = timings("experts", "ways", **case)
        where = f"convnet-3 width={case['width']} batch={BATCH} threads=1"
        field, floor = by_way["field"], by_way["floor"]
        for way, words in (("field", "torch.nn fp32"), ("floor", "convolutions bf16"), ("ours", "compiled bf16")):
            yield compared("experts", f"{where} {words}", by_way[way], field, floor=floor, unit="images/s", rate=True)
        images = BATCH * case["ours"]
        yield BenchRow(
            bench="experts", case=f"{where} compilation", value=by_way["ours"].compilation * images, unit="s"
        )
