"""Images per second of expert training, against the same loop written plainly: fp32, eager, one net, the same batches.

All see the same augmented batches of uint8 images, and making them counts. They take turns in one process, so that
whatever else the machine does falls on all; each figure is the median of its turns. A row beside them is the loop as the
field writes it, with `torch.nn` modules, whose instance norm is one fused operation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayd.data.augment import AugmentConfig
from rayd.data.images import Images, Spec
from rayd.data.transform import Transform
from rayd.experts.config import ExpertConfig
from rayd.experts.train import ExpertStep
from rayd.machine import use_threads
from rayd.nets.convnet import NetConfig
from rayd.seeds import generator
from rayd.studies.bench import Row, isolated

BATCH, SIDE, CLASSES = 256, 32, 10
SIZES: dict[str, list[dict[str, Any]]] = {
    "default": [{"width": 32, "turns": 3}, {"width": 128, "turns": 3, "plain": 2, "ours": 6}],
    "full": [{"width": 32, "turns": 7}, {"width": 128, "turns": 5, "plain": 4, "ours": 16}],
}


def pictures(count: int) -> Images:
    """Random images: what they show does not change how long a step takes."""
    rng = generator(0, "bench", "experts")
    pixels = torch.randint(256, (count, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (count,), generator=rng)
    return Images(pixels, labels, tuple(map(str, range(CLASSES))), "random", {"content": ""})


def convnet(width: int) -> nn.Module:
    """ConvNet-3 with instance norm as the field writes it."""
    layers: list[nn.Module] = []
    for channels in (3, width, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (SIDE // 8) ** 2, CLASSES))


def plain_epoch(
    net: Callable[[Tensor], Tensor],
    params: Iterable[Tensor],
    images: Images,
    transform: Transform,
    config: ExpertConfig,
    seed: int,
    epoch: int,
    steps: int | None = None,
) -> None:
    """The plain loop over the batches that `Ground.batches` gives."""
    optimiser = torch.optim.SGD(params, lr=config.rate(epoch), momentum=config.momentum)
    augment, n = config.augment.build(), len(images)
    order = torch.randperm(n, generator=generator(seed, "order", epoch))
    rng = generator(seed, "augment", epoch)
    whole = len(order) - len(order) % config.batch
    for index in order[:whole].split(config.batch)[:steps]:
        x = transform(images.pixels_NCHW[index])
        x = augment(x, augment.draw(rng, len(index), tuple(x.shape[1:])))
        loss = F.cross_entropy(net(x), images.labels_N[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def turns(width: int, turns: int = 3, plain: int = 4, ours: int = 16, threads: int = 1) -> dict[str, float]:
    """Images per second both ways. `plain` and `ours`: batches in one turn of each."""
    use_threads(threads)
    images = pictures(BATCH * max(plain, ours))
    transform = Transform("normalise", torch.full((3,), 0.5), torch.full((3,), 0.25))
    config = ExpertConfig(batch=BATCH, augment=AugmentConfig())
    spec = Spec((3, SIDE, SIDE), CLASSES)
    net = NetConfig(width=width).build(spec)
    expert_step = ExpertStep(config, net, transform, images, None, torch.device("cpu"), stacked=False)
    theta_KP = net.init(generator(0, "init"))[None]
    module, theta_P = convnet(width), theta_KP[0].clone().requires_grad_()

    def fast(epoch: int, steps: int) -> None:
        for number, (x, y) in enumerate(expert_step.batches([0], epoch)):
            if number == steps:
                return
            expert_step.step(theta_KP, None, x, y, config.lr)

    def slow(epoch: int, steps: int) -> None:
        plain_epoch(lambda x: net(theta_P, x), [theta_P], images, transform, config, 0, epoch, steps)

    def modules(epoch: int, steps: int) -> None:
        plain_epoch(module, module.parameters(), images, transform, config, 0, epoch, steps)

    began = time.perf_counter()
    fast(1, 1)
    compiling = time.perf_counter() - began
    ways = {"plain": (slow, plain), "modules": (modules, plain), "ours": (fast, ours)}
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, (run, steps) in ways.items():
            found = speed(run, turn + 1, steps)
            if turn:
                seen[name].append(found)
    return {name: statistics.median(found) for name, found in seen.items()} | {"compiling": compiling}


def speed(run: Callable[[int, int], None], epoch: int, steps: int) -> float:
    began = time.perf_counter()
    run(epoch, steps)
    return BATCH * steps / (time.perf_counter() - began)


def rows(size: str = "default") -> Iterator[Row]:
    for case in SIZES[size]:
        found = isolated("experts", "turns", timeout=900, **case)
        where = f"convnet-3 width={case['width']} batch={BATCH} threads=1"
        ours, plain = found["ours"], found["plain"]
        yield Row("experts", f"{where} plain fp32 eager", plain, "images/s", 1.0)
        yield Row("experts", f"{where} bf16 compiled", ours, "images/s", ours / plain)
        yield Row("experts", f"{where} torch.nn fp32 eager", found["modules"], "images/s", found["modules"] / plain)
        yield Row("experts", f"{where} compilation", found["compiling"], "s")
