"""Five networks compiled, against the same five one after another over torch.nn, eager fp32: the loop of the field.

Both train on the same batches of the same seeds from the same start. bf16 leaves parameters, norms and losses in fp32.
Compilation is not counted; it is a row of its own. Rows `agree` hold the difference of the two mean accuracies on
generated images, in units of its 95 % interval; below 1 they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F

from rayd.data.config import DataConfig
from rayd.data.images import Spec
from rayd.data.load import load as load_data
from rayd.data.transform import Transform
from rayd.evaluate.batches import ImageSet, batches
from rayd.evaluate.recipe import RecipeConfig
from rayd.evaluate.score import evaluate
from rayd.nets.convnet import Net, NetConfig
from rayd.seeds import generator
from rayd.stats import difference, summary
from rayd.studies.bench import Row, compared, interleaved
from rayd.studies.bench.field import CLASSES, SIDE, convnet, started

SPEC = Spec((3, SIDE, SIDE), CLASSES)
CPU = torch.device("cpu")
SEEDS = list(range(5))
CASES = ((32, 1, 12), (32, 10, 3), (128, 1, 3), (128, 10, 1))
"""width, ipc, steps"""


def field(recipe: RecipeConfig, net: Net, width: int, train: ImageSet, test: ImageSet) -> list[float]:
    """torch.nn and torch.optim, one network after another; their accuracies."""
    accuracies = []
    for seed in SEEDS:
        modules = started(convnet(width), net.init(generator(seed, "init")))
        optimiser = torch.optim.SGD(modules.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
        for images, targets in batches(recipe, train, seed, CPU, None):
            optimiser.zero_grad()
            F.cross_entropy(modules(images), targets).backward()
            optimiser.step()
        with torch.no_grad():
            parts = torch.arange(len(test)).split(500)
            right = sum(int((modules(test.decode(part)[0]).argmax(1) == test.classes_N[part]).sum()) for part in parts)
        accuracies.append(right / len(test))
    return accuracies


def rows(size: str = "default") -> Iterator[Row]:
    for width, ipc, few in CASES:
        steps = few * (4 if size == "full" else 1)
        net = NetConfig(width=width).build(SPEC)
        train, test = _noise(10 * ipc), _noise(10)
        where = f"width={width} ipc={ipc} {len(SEEDS)} networks"

        def ours(
            recipe: RecipeConfig, train: ImageSet, test: ImageSet, net: Net = net, work: int = len(SEEDS) * steps
        ) -> float:
            evaluate(recipe, net, train, test, None, SEEDS, compile=True)
            return work

        def theirs(
            recipe: RecipeConfig, train: ImageSet, test: ImageSet, net: Net = net, work: int = len(SEEDS) * steps
        ) -> float:
            field(recipe, net, net.config.width or 0, train, test)
            return work

        recipe = RecipeConfig(steps=steps, schedule="constant")
        precisions: tuple[Literal["fp32", "bf16"], ...] = (
            ("fp32", "bf16") if width == 32 or size == "full" else ("bf16",)
        )
        runs: dict[str, Callable[[], float | None]] = {"torch.nn fp32": partial(theirs, recipe, train, test)}
        runs |= {f"compiled {p}": partial(ours, replace(recipe, precision=p), train, test) for p in precisions}
        by_way = interleaved(runs)
        for name, timing in by_way.items():
            yield compared("evaluate", f"{where} {name}", timing, by_way["torch.nn fp32"], unit="steps/s", rate=True)
            if "compiled" in name:
                seconds = timing.compilation * len(SEEDS) * steps
                yield Row(bench="evaluate", case=f"{where} {name}: compilation", value=seconds, unit="s")
    yield from _agreement()


def _noise(n: int) -> ImageSet:
    return ImageSet.tensors(torch.randn(n, *SPEC.shape, generator=generator(n, "noise")), torch.arange(n) % 10, SPEC)


def _agreement() -> Iterator[Row]:
    splits = load_data(DataConfig(name="generated", size=SIDE, channels=3, count=200))
    transform = Transform.fit(splits.train, "normalise")
    net = NetConfig(width=8).build(splits.train.spec)
    recipe = RecipeConfig(steps=40, lr=0.02, schedule="constant")
    train, test = (ImageSet.of(part, transform).resident(CPU) for part in (splits.train, splits.test))
    slow = summary(field(recipe, net, 8, train, test))
    for precision in ("fp32", "bf16"):
        scores = evaluate(replace(recipe, precision=precision), net, train, test, None, SEEDS, compile=True)
        gap, half = difference(summary([score.accuracy for score in scores]), slow)
        yield Row(bench="evaluate", case=f"agree {precision}", value=abs(gap) / max(half, 1e-3), unit="intervals")
