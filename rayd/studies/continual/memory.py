"""What is kept of one task: real images as they are, or a synthetic set as stored.

Shapes: N images, K classes of the whole dataset, k of the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rayd.config import MethodConfig
from rayd.data.images import Images, Spec
from rayd.data.transform import Transform
from rayd.distill.budget import Budget, Ledger, pack, unpack
from rayd.distill.contract import Codec
from rayd.distill.inputs import ResidentInputs
from rayd.distill.loop import Distillation
from rayd.errors import refuse
from rayd.evaluate import coreset
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.recipe import RecipeConfig
from rayd.evaluate.score import trained
from rayd.nets.convnet import Net, NetConfig
from rayd.seeds import generator, seed_of

REAL = ("random", "herding")
WITHIN = frozenset({"nets", "real"})
"""What a method may need here: experts of a task's classes are nobody's buffer."""


@dataclass(frozen=True)
class Kept:
    """A memory as a network sees it: images in network space, labels over all classes of the dataset."""

    images_NCHW: Tensor
    targets_NK: Tensor
    classes_N: Tensor
    bytes: int

    @classmethod
    def together(cls, parts: Sequence[Kept]) -> Kept:
        images, targets, classes = (
            torch.cat([getattr(p, name) for p in parts]) for name in ("images_NCHW", "targets_NK", "classes_N")
        )
        return cls(images, targets, classes, sum(p.bytes for p in parts))


def of_task(images: Images, classes: Sequence[int]) -> Images:
    """The task's images, its classes numbered from 0 in the order of the task."""
    index = torch.cat([images.of_class(c) for c in classes]).sort().values
    few = images.select(index)
    number = torch.full((len(images.classes),), -1)
    number[list(classes)] = torch.arange(len(classes))
    names = tuple(images.classes[c] for c in classes)
    return Images(few.pixels_NCHW, number[few.labels_N], names, few.name, few.manifest)


def remember(
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
) -> Kept:
    """The memory of one task in `room` bytes a class. `images`: the task's own (see `of_task`)."""
    if isinstance(what, str):
        return _real(what, images, classes, whole, room, net.build(images.spec), transform, recipe, seed)
    codec = distill(what, images, Budget(bytes=room * len(classes)), net, transform, seed)
    size = as_stored(codec)
    with torch.no_grad():
        decoded = [codec.decode(part) for part in torch.arange(len(codec)).split(512)]
    images_NCHW, own_Nk = (torch.cat([d[i].float() for d in decoded]).cpu() for i in (0, 1))
    targets_NK = torch.zeros(len(images_NCHW), whole.classes)
    targets_NK[:, list(classes)] = own_Nk
    return Kept(images_NCHW, targets_NK, torch.tensor(classes)[codec.classes()], size)


def _real(
    kind: str, images: Images, classes: Sequence[int], whole: Spec, room: int, net: Net, transform: Transform,
    recipe: RecipeConfig, seed: int,
) -> Kept:  # fmt: skip
    """8-bit images, a class after another, so that labels take no byte."""
    count = room // whole.floats
    features = None
    if kind == "herding":
        source = ImageSet.of(images, transform)
        plain = replace(recipe, labels="hard", learned=False, mixup=0.0, cutmix=0.0)
        theta_P = trained(plain, net, source, None, seed_of(seed, "features"))
        with torch.no_grad():
            parts = torch.arange(len(source)).split(500)
            features = torch.cat([net.features(theta_P, source.decode(part)[0])[-1] for part in parts])
    picked = torch.cat([order[:count] for order in coreset.orders(kind, images, count, seed, features)])
    own_N = torch.tensor(classes)[images.labels_N[picked]]
    targets_NK = torch.nn.functional.one_hot(own_N, whole.classes).float()
    return Kept(transform(images.pixels_NCHW[picked]), targets_NK, own_N, len(picked) * whole.floats)


def distill(
    method: MethodConfig, images: Images, budget: Budget, net: NetConfig, transform: Transform, seed: int
) -> Codec:
    """A synthetic set of the task's images, by the engine as it is."""
    spec = images.spec
    config = method.codec.fit(budget, spec)
    inputs = ResidentInputs(net.build(spec), transform, images, torch.device("cpu"), seed, precision=method.precision,
                     compiled=method.compiled)  # fmt: skip
    codec: Codec = config.build(spec, generator(seed, "codec"))
    codec.encode(inputs.start_images(seed), generator(seed, "encode"))
    objective = method.objective.build(inputs)
    terms = [term.build(inputs, codec) for term in method.terms]
    work = Distillation(
        codec, objective, terms, steps=method.steps, optimiser=method.optimiser, inputs=inputs, guard=method.guard,
        ema=method.ema,
    )  # fmt: skip
    for step in work.run():
        if step.number % method.checkpoint == 0:
            work.checkpoint()
    return work.averaged()


@torch.no_grad()
def as_stored(codec: Codec) -> int:
    """Round the codec to what its file holds; the file's bytes."""
    stored = codec.stored()
    for one in stored.values():
        one.tensor.copy_(unpack(pack(one.tensor, one.storage)).to(one.tensor))
    return Ledger.of(stored).bytes


def check(name: str, what: Any, room: int, spec: Spec, classes: int) -> None:
    """Refuse a memory that cannot be, before any work."""
    field = f"continual.memories.{name}"
    if isinstance(what, str):
        if what not in REAL:
            raise refuse(field, what, f"{' | '.join(REAL)}, or a method with codec and objective")
        if room < spec.floats:
            raise refuse("continual.bytes_per_class", room, f"at least {spec.floats}, one 8-bit image of a class")
        return
    lacking = sorted(set(what.needs) - WITHIN)
    if lacking or what.codec.__dict__.get("labels") == "soft" or what.codec.__dict__.get("start") == "confident":
        needs = ", ".join(lacking) or "an expert for its labels or start"
        raise refuse(
            field, what.sentence, "a method without experts: no buffer holds a task's classes", f"it needs {needs}"
        )
    task = Spec(spec.shape, classes)
    what.codec.fit(Budget(bytes=room * classes), task)
