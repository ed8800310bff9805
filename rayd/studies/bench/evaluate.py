"""Five networks together against the same five one after another, eager fp32: the way the field scores.

Both train on the same batches of the same seeds. `together` is the compiled step in bf16 (parameters, norms and losses
stay fp32); `compiled` is the same in fp32, which saves the overhead but none of the convolutions' arithmetic. Compilation
is not counted; it is printed as a row of its own. That a faster way gives the same number is checked where there is
something to learn: cases `agree` hold the difference of the two means, in units of its 95 % interval, on generated
images; below 1 they agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from rayd.data.config import DataConfig
from rayd.data.images import Spec
from rayd.data.load import load as load_data
from rayd.data.transform import Transform
from rayd.evaluate.batches import ImageSet, batches
from rayd.evaluate.recipe import RecipeConfig
from rayd.evaluate.score import Score, evaluate
from rayd.nets.convnet import Net, NetConfig
from rayd.seeds import generator
from rayd.stats import summary
from rayd.studies.bench import Row

NETWORKS = 5
SPEC = Spec((3, 32, 32), 10)
CPU = torch.device("cpu")


def plainly(recipe: RecipeConfig, net: Net, train: ImageSet, test: ImageSet, seeds: list[int]) -> list[Score]:
    """torch.optim, eager fp32, one network after another."""
    scores = []
    for seed in seeds:
        theta = net.init(generator(seed, "init")).requires_grad_(True)
        optimiser = torch.optim.SGD([theta], recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
        for images, targets in batches(recipe, train, seed, CPU, None):
            optimiser.zero_grad()
            F.cross_entropy(net(theta, images), targets).backward()
            optimiser.step()
        with torch.no_grad():
            right = sum(int((net(theta, test.decode(part)[0]).argmax(1) == test.classes_N[part]).sum())
                        for part in torch.arange(len(test)).split(500))  # fmt: skip
        scores.append(Score(right / len(test), seed, "plain"))
    return scores


def rows(size: str = "default") -> Iterator[Row]:
    seeds = list(range(NETWORKS))
    cases = ((32, 1, 20), (32, 10, 6), (128, 1, 6), (128, 10, 2))
    for width, ipc, steps in cases:
        steps = steps * (4 if size == "full" else 1)
        net = NetConfig(width=width).build(SPEC)
        train, test = _noise(10 * ipc), _noise(10)
        plain = 0.0
        for precision in ("fp32", "bf16") if width == 32 or size == "full" else ("bf16",):
            recipe = RecipeConfig(steps=steps, precision=precision, schedule="constant")
            began = time.perf_counter()
            evaluate(recipe, net, train, test, None, seeds[:1], compile=True)
            warm = time.perf_counter() - began
            if not plain:
                plain = _best(partial(plainly, recipe, net, train, test, seeds))
            fast = _best(partial(evaluate, recipe, net, train, test, None, seeds, compile=True))
            case = f"{'together' if precision == 'bf16' else 'compiled'} width={width} ipc={ipc} {precision}"
            yield Row("evaluate", case, NETWORKS * steps / fast, "steps/s", ratio=plain / fast)
            yield Row("evaluate", f"compilation width={width} ipc={ipc} {precision}", warm - fast / NETWORKS, "s")
    yield from _agreement(seeds)


def _noise(n: int) -> ImageSet:
    return ImageSet.tensors(torch.randn(n, *SPEC.shape, generator=generator(n, "noise")), torch.arange(n) % 10, SPEC)


def _best(fn: Callable[[], object], times: int = 2) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        fn()
        taken.append(time.perf_counter() - began)
    return min(taken)


def _agreement(seeds: list[int]) -> Iterator[Row]:
    splits = load_data(DataConfig(name="generated", size=16, channels=1, count=200))
    transform = Transform.fit(splits.train, "normalise")
    net = NetConfig(width=16, depth=2).build(splits.train.spec)
    recipe = RecipeConfig(steps=60, lr=0.02)
    train, test = (ImageSet.of(part, transform).resident(CPU) for part in (splits.train, splits.test))
    slow = summary([s.accuracy for s in plainly(replace(recipe, schedule="constant"), net, train, test, seeds)])
    for precision in ("fp32", "bf16"):
        same = replace(recipe, precision=precision, schedule="constant")
        fast = summary([s.accuracy for s in evaluate(same, net, train, test, None, seeds, compile=True)])
        wide = (fast["ci95"] ** 2 + slow["ci95"] ** 2) ** 0.5
        yield Row("evaluate", f"agree {precision}", abs(fast["mean"] - slow["mean"]) / max(wide, 1e-3), "intervals")
