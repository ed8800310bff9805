"""Five networks compiled, against the same five one after another over torch.nn, eager fp32: the loop of the field.

Both train on the same batches of the same seeds from the same start. bf16 leaves parameters, norms and losses in fp32.
Compilation is not counted; it is a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F

from rayd.data.images import Spec
from rayd.evaluate.batches import ImageSet, batches
from rayd.evaluate.recipe import RecipeConfig
from rayd.evaluate.score import evaluate
from rayd.nets.convnet import Net, NetConfig
from rayd.seeds import generator
from rayd.studies.bench import BenchRow, compared, interleaved
from rayd.studies.bench.field import CLASSES, SIDE, convnet, started

SPEC = Spec((3, SIDE, SIDE), CLASSES)
CPU = torch.device("cpu")
SEEDS = list(range(5))
CASES = ((32, 1, 12), (32, 10, 3), (128, 1, 3), (128, 10, 1))
"""width, ipc, steps"""


def field(recipe: RecipeConfig, net: Net, width: int, train: ImageSet, test: ImageSet) -> None:
    """torch.nn and torch.optim, one network after another, each tested at its end."""
    for seed in SEEDS:
        modules = started(convnet(width), net.init(generator(seed, "init")))
        optimiser = torch.optim.SGD(modules.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
        for images, targets in batches(recipe, train, seed, CPU, None):
            optimiser.zero_grad()
            F.cross_entropy(modules(images), targets).backward()
            optimiser.step()
        with torch.no_grad():
            modules(test.decode(torch.arange(len(test)))[0]).argmax(1)


def rows(size: str = "default") -> Iterator[BenchRow]:
    for width, ipc, few in CASES:
        steps = few * (4 if size == "full" else 1)
        net = NetConfig(width=width).build(SPEC)
        train, test = _noise(10 * ipc), _noise(10)
        where = f"width={width} ipc={ipc} {len(SEEDS)} networks"

        recipe = RecipeConfig(steps=steps, schedule="constant")
        precisions: tuple[Literal["fp32", "bf16"], ...] = (
            ("fp32", "bf16") if width == 32 or size == "full" else ("bf16",)
        )
        runs: dict[str, Callable[[], Any]] = {"torch.nn fp32": partial(field, recipe, net, width, train, test)}
        for precision in precisions:
            same = replace(recipe, precision=precision)
            runs[f"compiled {precision}"] = partial(evaluate, same, net, train, test, None, SEEDS, compile=True)
        by_way = interleaved(runs, work=len(SEEDS) * steps)
        for name, timing in by_way.items():
            yield compared("evaluate", f"{where} {name}", timing, by_way["torch.nn fp32"], unit="steps/s", rate=True)
            if "compiled" in name:
                seconds = timing.compilation * len(SEEDS) * steps
                yield BenchRow(bench="evaluate", case=f"{where} {name}: compilation", value=seconds, unit="s")


def _noise(n: int) -> ImageSet:
    return ImageSet.tensors(torch.randn(n, *SPEC.shape, generator=generator(n, "noise")), torch.arange(n) % 10, SPEC)
