"""Accuracy of fresh networks trained on a set of images, under a recipe that says everything.

All randomness of one network (its start, its batches, its augmentation) comes from its own seed, so a score does not
depend on which others were computed beside it. On a GPU the networks of one call are one vmapped step. On a CPU one
compiled step is fed with them one after another, which measures faster there than stacking: grouped convolutions lose more
than fewer calls gain.

Shapes: N images, B of a batch, K classes, P parameters (P0 trainable), E networks together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.errors import OutOfMemory, refuse
from rayd.evaluate.batches import ImageSet, batches
from rayd.evaluate.recipe import RecipeConfig as RecipeConfig
from rayd.machine import arithmetic, beat, can_compile, many_variants, out_of_memory, peak_memory, release
from rayd.nets.convnet import Net
from rayd.seeds import generator

log = logging.getLogger(__name__)

TEST_BATCH, ON_CPU = 500, 64
"""Images per forward pass: on a CPU what stays near the cache is faster, and large blocks of many sizes break up memory."""
WORTH = 200
"""Steps from which compiling (some ten seconds, once for all networks alike) pays; fewer run eagerly."""


@dataclass(frozen=True)
class Score:
    """Test accuracy of one network at its last step."""

    accuracy: float
    seed: int
    net: str
    seconds: float = 0.0
    memory: int = 0
    """Bytes: the peak of the process that trained it."""


@torch.no_grad()
def evaluate(
    recipe: RecipeConfig,
    net: Net,
    source: Any,
    test: Any,
    transform: Transform | None,
    seeds: Sequence[int],
    *,
    device: torch.device | None = None,
    step_size: float | None = None,
    teacher: tuple[Net, Tensor] | None = None,
    compile: bool | None = None,
    together: bool | None = None,
) -> list[Score]:
    """One score per seed, tested after the last step. `source` and `test`: a codec, Images or a Source."""
    device = device or torch.device("cpu")
    rate = check(recipe, step_size, teacher)
    transform = transform.to(device) if transform is not None else None
    train, held_out = (ImageSet.of(images, transform).resident(device) for images in (source, test))
    if len(train) == 0:
        raise refuse("images", 0, "at least one image to train on")
    compile = train.length(recipe).steps >= WORTH if compile is None else compile
    together = device.type == "cuda" if together is None else together

    def scored(group: list[int]) -> list[Score]:
        began = time.perf_counter()
        with arithmetic(recipe.precision):
            thetas_EP = _train(recipe, net, train, group, rate, device, teacher, compile)
            accuracies = [_accuracy(net, theta_P, held_out, recipe.precision, device, compile) for theta_P in thetas_EP]
        seconds = (time.perf_counter() - began) / len(group)
        name = getattr(net.config, "name", type(net).__name__)
        memory = peak_memory(device.type)
        return [Score(a, seed, name, seconds, memory) for a, seed in zip(accuracies, group, strict=True)]

    return _in_groups(scored, [list(seeds)] if together else [[seed] for seed in seeds])


def _in_groups(scored: Callable[[list[int]], list[Score]], groups: list[list[int]]) -> list[Score]:
    """Networks side by side; where memory runs out, once, half as many at a time."""
    scores: list[Score] = []
    halved = False
    while groups:
        group, ran_out = groups[0], ""
        try:
            scores += scored(group)
        except (RuntimeError, MemoryError) as error:
            ran_out = out_of_memory(error)
            if not ran_out:
                raise
            if halved or len(group) == 1:
                knobs = "recipe.batch or recipe.seeds (lower), recipe.precision=bf16, a narrower recipe.nets"
                raise OutOfMemory(f"out of memory training {len(group)} networks: {ran_out}. Knobs: {knobs}") from error
        if not ran_out:
            del groups[0]
            continue
        release()
        half, halved = len(group) // 2, True
        log.warning("out of memory (%s): %d networks at a time instead of %d", ran_out, len(group) - half, len(group))
        groups[:1] = [group[:half], group[half:]]
    return scores


@torch.no_grad()
def trained(
    recipe: RecipeConfig, net: Net, source: Any, seed: int, *, device: torch.device, transform: Transform | None = None
) -> Tensor:
    """theta_P of one network under the recipe."""
    train = ImageSet.of(source, transform).resident(device)
    compile = train.length(recipe).steps >= WORTH
    with arithmetic(recipe.precision):
        return _train(recipe, net, train, [seed], recipe.lr, device, None, compile)[0]


def embedder(
    recipe: RecipeConfig, net: Net, source: ImageSet, seed: int, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """index_N -> features_ND by a network trained on the source, a block at a time: what a coreset is chosen in."""
    recipe = replace(recipe, labels="hard", learned=False, mixup=0.0, cutmix=0.0)
    theta_P = trained(recipe, net, source, seed, device=device)

    @torch.no_grad()
    def features(index_N: Tensor) -> Tensor:
        with arithmetic(recipe.precision):
            blocks = (source.decode(part)[0].to(device) for part in index_N.split(_test_batch(device)))
            return torch.cat([net.features(theta_P, block)[-1] for block in blocks])

    return features


def _test_batch(device: torch.device) -> int:
    return ON_CPU if device.type == "cpu" else TEST_BATCH


def check(recipe: RecipeConfig, step_size: float | None, teacher: object) -> float:
    """The learning rate; refuses a recipe that this set cannot be scored by."""
    if recipe.labels == "teacher" and teacher is None:
        raise refuse("recipe.labels", "teacher", "hard | soft, for a set without a teacher", "set recipe.labels=hard")
    if not recipe.learned:
        return recipe.lr
    if step_size is None:
        raise refuse("recipe", recipe.name, "a recipe with a step size of its own, for a set that learned none",
                     "choose recipe=cpu, or set recipe.learned=false")  # fmt: skip
    return step_size


# ---- training ----------------------------------------------------------------------------------------------------


def _train(
    recipe: RecipeConfig, net: Net, source: ImageSet, seeds: list[int], rate: float, device: torch.device,
    teacher: tuple[Net, Tensor] | None, compile: bool,
) -> Tensor:  # fmt: skip
    """theta after the last step of every seed's network."""
    many = len(seeds) > 1
    step = step_function(
        net.config, net.spec, recipe.optimiser, recipe.momentum, recipe.weight_decay, recipe.temperature,
        recipe.precision, many, compile and can_compile(device.type),
    )  # fmt: skip
    theta = torch.stack([net.init(generator(seed, "init")) for seed in seeds]).to(device)
    first = torch.zeros(len(seeds), net.trainable, device=device)
    second = torch.zeros_like(first) if recipe.optimiser != "sgd" else first.new_zeros(len(seeds), 1)
    since, length = 0, source.length(recipe)
    feeds = [batches(recipe, source, seed, device, teacher) for seed in seeds]
    for number, step_batches in enumerate(zip(*feeds, strict=True)):
        beat(f"scoring, step {number}")
        images, targets = (torch.stack(part) for part in zip(*step_batches, strict=True))
        if recipe.schedule == "half" and number == (length.epochs // 2 + 1) * length.epoch:
            first, second, since = torch.zeros_like(first), torch.zeros_like(second), number
        lr = rate * factor(recipe.schedule, number // length.epoch, length.epochs)
        count = number - since + 1
        hyper = torch.tensor([lr, 1 - 0.9**count, 1 - 0.999**count], device=device)
        if many:
            theta, first, second = step(theta, first, second, images, targets, hyper)
        else:
            x = images[0].contiguous(memory_format=torch.channels_last)
            theta, first, second = (t[None] for t in step(theta[0], first[0], second[0], x, targets[0], hyper))
    return theta


def factor(schedule: str, epoch: int, epochs: int) -> float:
    """Of the learning rate in an epoch (or step), from 0."""
    if schedule == "half":
        return 0.1 if epoch > epochs // 2 else 1.0
    if schedule == "fifths":
        return 0.5 ** sum(epoch >= epochs * k // 5 for k in (1, 2, 3, 4))
    if schedule == "cosine":
        return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * epoch / epochs))))
    return 1.0


@cache
def step_function(
    config: Any, spec: Spec, optimiser: str, momentum: float, decay: float, temperature: float, precision: str,
    many: bool, compile: bool,
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    """One optimiser step as a pure function of tensors, made and compiled once for all that share it."""
    net: Net = config.build(spec)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]

    def loss(theta_P: Tensor, images: Tensor, targets_BK: Tensor) -> tuple[Tensor, Tensor]:
        logits_BK, tail = net.train_step_stats(theta_P.to(dtype), images.to(dtype))
        return F.cross_entropy(logits_BK.float() / temperature, targets_BK), tail.float()

    def step(
        theta_P: Tensor, m: Tensor, v: Tensor, images: Tensor, targets: Tensor, hyper: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient_P, tail = torch.func.grad(loss, has_aux=True)(theta_P, images, targets)
        head, g = theta_P[: net.trainable], gradient_P[: net.trainable]
        if optimiser == "adamw":
            head = head * (1 - hyper[0] * decay)
        else:
            g = g + decay * head
        if optimiser == "sgd":
            m = momentum * m + g
            head = head - hyper[0] * m
        else:
            m, v = torch.lerp(g, m, 0.9), torch.lerp(g * g, v, 0.999)
            head = head - hyper[0] * (m / hyper[1]) / ((v / hyper[2]).sqrt() + 1e-8)
        return torch.cat([head, tail]), m, v

    fn = torch.func.vmap(step, in_dims=(0, 0, 0, 0, 0, None)) if many else step
    return _compiled(fn, places=(3, 4), dim=int(many)) if compile else fn


def _compiled(fn: Callable[..., Any], places: Sequence[int], dim: int = 0) -> Callable[..., Any]:
    """Compiled once for batches of every size: dimension `dim` of the tensors at `places`."""
    optimised = many_variants(torch.compile(fn, fullgraph=True))

    def call(*tensors: Tensor) -> Any:
        for place in places:
            torch._dynamo.maybe_mark_dynamic(tensors[place], dim)
        return optimised(*tensors)

    return call


# ---- testing -----------------------------------------------------------------------------------------------------


@cache
def _forward(config: Any, spec: Spec, precision: str, compile: bool) -> Callable[[Tensor, Tensor], Tensor]:
    net: Net = config.build(spec)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]

    def forward(theta_P: Tensor, images: Tensor) -> Tensor:
        return net(theta_P.to(dtype), images.to(dtype)).argmax(1)

    return _compiled(forward, places=(1,)) if compile else forward


def _accuracy(net: Net, theta_P: Tensor, test: ImageSet, precision: str, device: torch.device, compile: bool) -> float:
    compile = compile and len(test) >= TEST_BATCH and can_compile(device.type)
    forward, right = _forward(net.config, net.spec, precision, compile), 0
    for index in torch.arange(len(test)).split(_test_batch(device)):
        images = test.decode(index)[0].to(device).contiguous(memory_format=torch.channels_last)
        right += int((forward(theta_P, images).cpu() == test.classes_N[index]).sum())
    return right / len(test)
