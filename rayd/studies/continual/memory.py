"""The memory of one task: real images as they are, or a synthetic set as stored.

Shapes: N images, K classes of the whole dataset, k of the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rayd.config import MethodConfig
from rayd.data.images import Images, Spec
from rayd.data.transform import Transform
from rayd.distill.budget import Budget, Ledger
from rayd.distill.contract import Codec
from rayd.distill.inputs import RunInputs
from rayd.distill.loop import Distillation
from rayd.errors import refuse
from rayd.evaluate import coreset
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.recipe import RecipeConfig
from rayd.evaluate.score import embedder
from rayd.machine import arithmetic
from rayd.nets.convnet import NetConfig
from rayd.run.assemble import parts
from rayd.seeds import generator, seed_of

REAL = ("random", "herding")


@dataclass(frozen=True)
class Memory:
    """A memory as a network sees it: images in network space, labels over all classes of the dataset."""

    images_NCHW: Tensor
    targets_NK: Tensor
    classes_N: Tensor
    bytes: int

    @classmethod
    def joined(cls, parts: Sequence[Memory]) -> Memory:
        names = ("images_NCHW", "targets_NK", "classes_N")
        images, targets, classes = (torch.cat([getattr(part, name) for part in parts]) for name in names)
        return cls(images, targets, classes, sum(part.bytes for part in parts))


def task_images(images: Images, classes: Sequence[int]) -> Images:
    """The task's images, its classes numbered from 0 in the order of the task."""
    few = images.select(torch.cat([images.of_class(c) for c in classes]).sort().values)
    number = torch.full((len(images.classes),), -1)
    number[list(classes)] = torch.arange(len(classes))
    names = tuple(images.classes[c] for c in classes)
    return Images(few.pixels_NCHW, number[few.labels_N], names, few.name, few.manifest)


def memory_of(
    what: str | MethodConfig,
    images: Images,
    classes: Sequence[int],
    whole: Spec,
    room: int,
    *,
    net: NetConfig,
    transform: Transform,
    recipe: RecipeConfig,
    seed: int,
) -> Memory:
    """The memory of one task in `room` bytes a class. `images`: the task's, see `task_images`; `whole`: of the dataset."""
    number_k = torch.tensor(classes)
    if isinstance(what, str):
        # 8-bit images, a class after another, so that labels take no byte
        count = room // whole.floats
        features: coreset.Features | None = None
        if what == "herding":
            source, seen = ImageSet.of(images, transform), seed_of(seed, "features")
            features = embedder(recipe, net.build(images.spec), source, seen, transform.device)
        chosen = torch.cat([order[:count] for order in coreset.orders(what, images, count, seed, features)])
        classes_N = number_k[images.labels_N[chosen]]
        targets_NK = one_hot(classes_N, whole.classes).float()
        images_NCHW = transform(images.pixels_NCHW[chosen].to(transform.device)).cpu()
        return Memory(images_NCHW, targets_NK, classes_N, len(chosen) * whole.floats)
    codec = distill(what, images, Budget(bytes=room * len(classes)), net, transform, seed)
    size = round_to_stored(codec)
    with torch.no_grad():
        decoded = [codec.decode(part) for part in torch.arange(len(codec)).split(512)]
    images_NCHW, labels_Nk = (torch.cat([part[i].float().cpu() for part in decoded]) for i in (0, 1))
    targets_NK = torch.zeros(len(images_NCHW), whole.classes)
    targets_NK[:, number_k] = labels_Nk
    return Memory(images_NCHW, targets_NK, number_k[codec.classes()], size)


def distill(
    method: MethodConfig, images: Images, budget: Budget, net: NetConfig, transform: Transform, seed: int
) -> Codec:
    """A synthetic set of the task's images."""
    spec = images.spec
    config = method.codec.fit(budget, spec)
    inputs = RunInputs(net.build(spec), transform, images, transform.device, seed, precision=method.precision,
                     compiled=method.compiled)  # fmt: skip
    codec: Codec = config.build(spec, generator(seed, "codec")).to(inputs.device)
    codec.encode(inputs.start_images(seed), generator(seed, "encode"))
    objective, terms = parts(method, inputs, codec)
    work = Distillation(
        codec, objective, terms, steps=method.steps, optimiser=method.optimiser, inputs=inputs, guard=method.guard,
        ema=method.ema, through=method.through,
    )  # fmt: skip
    with arithmetic(method.precision):
        for step in work.run():
            if step.number % method.checkpoint == 0:
                work.checkpoint()
    return work.averaged()


@torch.no_grad()
def round_to_stored(codec: Codec) -> int:
    """Round the codec to the numbers that its file holds; the file's bytes."""
    codec.quantise()
    return Ledger.of(codec.stored()).bytes


def check(name: str, what: Any, room: int, spec: Spec, classes: int) -> None:
    """Refuse an impossible memory before any work."""
    field = f"continual.memories.{name}"
    if isinstance(what, str):
        if what not in REAL:
            raise refuse(field, what, f"{' | '.join(REAL)}, or a method with codec and objective")
        if room < spec.floats:
            raise refuse("continual.bytes_per_class", room, f"at least {spec.floats}, one 8-bit image of a class")
        return
    if what.reads_experts:
        raise refuse(field, what.sentence, "a method without experts: no buffer holds experts of a task's classes")
    what.codec.fit(Budget(bytes=room * classes), Spec(spec.shape, classes))
