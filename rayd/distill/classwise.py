"""What DM, DC and NCFM share: real and synthetic images of one class compared under one network, class by class.

An item is a step's network and a run of classes (`classes_per_item`; all of them in one item is fastest on one worker).
Real rows, augmentation draws and synthetic subsets are seeded by (run seed, step, class) and the network by (run seed,
step), so the result depends neither on how classes are grouped into items nor on how items are shared out.

The two sets are siamese: both get the same augmentation draw. Real images never need a gradient, so they pass through
the network in blocks of a fixed size; synthetic images of all classes of an item pass in one batch.

Shapes: G classes of an item, n real images of each, N synthetic images of the item, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rayd.data.augment import AugmentConfig, Draw
from rayd.distill.contract import Codec, Inputs, Item, Objective
from rayd.distill.unroll import DTYPES
from rayd.errors import refuse
from rayd.machine import compiled
from rayd.seeds import generator, seed_of

BLOCK = {"cpu": 64, "cuda": 1024}
"""Real images per forward pass: on a CPU what stays near the cache is three times faster than a whole class."""

ITEM = 2**27
"""Bytes of the real images of one item, as floats: what a step holds of them, and as much again for each one ahead."""

SIAMESE = AugmentConfig(share="batch")


@dataclass(frozen=True)
class Source:
    """What all items of one step share: the network, the trained one it came from, and the objective's own noise."""

    theta_P: Tensor
    teacher_P: Tensor | None = None
    noise: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Batch:
    """An item's data: the step's source and augmented real images in network space."""

    source: Source
    real_GnCHW: Tensor
    targets_GnK: Tensor


@dataclass(frozen=True)
class Synthetic:
    """The synthetic images of an item's classes, in order of class. `views` are what the network sees: augmented."""

    index_N: Tensor
    images_NCHW: Tensor
    labels_NK: Tensor
    views_NCHW: Tensor
    counts: tuple[int, ...]

    def by_class(self, fn: Callable[[Tensor], Tensor], rows_ND: Tensor) -> Tensor:
        """fn([G, m, D]) -> [G, ...] over the classes; in one call where all have the same number of images."""
        if len(set(self.counts)) == 1:
            return fn(rows_ND.unflatten(0, (len(self.counts), self.counts[0])))
        return torch.cat([fn(part[None]) for part in rows_ND.split(list(self.counts))])


class Classwise(Objective):
    """The frame of a class-by-class objective: items, seeds, real rows, siamese augmentation, blocks of real images."""

    multiclass: ClassVar[bool] = True
    reduction: ClassVar[str] = "sum"
    gives: ClassVar[frozenset[str]] = frozenset(
        {"net", "theta", "index", "images", "labels", "views", "real_images", "real_labels"}
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        batch_real: int = 256
        """Real images of each class a step."""
        batch_syn: int | None = None
        """Synthetic images of each class a step; null: all of them."""
        classes_per_item: int = 0
        """Classes of one item; 0: all in one, or as many as have ITEM bytes of real images. Lower it to share a step among
        workers; the result stays the same."""
        augment: AugmentConfig = field(default_factory=lambda: SIAMESE)
        """Siamese: one draw for the real and synthetic images of a class; no operations: none."""

        def __post_init__(self) -> None:
            if self.batch_real < 1:
                raise refuse("objective.batch_real", self.batch_real, "at least 1")
            if self.batch_syn is not None and self.batch_syn < 1:
                raise refuse("objective.batch_syn", self.batch_syn, "at least 1, or null for all")
            if self.classes_per_item < 0:
                raise refuse("objective.classes_per_item", self.classes_per_item, "at least 1, or 0 for all classes")
            if self.augment.share != "batch":
                raise refuse(
                    "objective.augment.share",
                    self.augment.share,
                    "batch (real and synthetic images get the same draw)",
                    "set objective.augment.share=batch",
                )

        @property
        def multiclass(self) -> bool:
            """Whether an item holds several classes under this configuration (what a contrast over classes needs)."""
            return self.classes_per_item != 1

    def __init__(self, config: Config, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.frame = config
        self.augment = config.augment.build()
        self.dtype = DTYPES[inputs.precision]
        self.block = BLOCK.get(inputs.device.type, 1024)
        self.members = [inputs.members(c) for c in range(inputs.spec.classes)]
        empty = [c for c, rows in enumerate(self.members) if len(rows) == 0]
        if empty:
            raise refuse("data", f"no image of class {empty[0]}", "at least one training image of every class")
        self.batch_real = min(config.batch_real, max(map(len, self.members)))
        self._shared: tuple[int, Source] | None = None
        self._embed = compiled(self._embedding, inputs.device, inputs.compiled)

    def _embedding(self, theta_P: Tensor, images_NCHW: Tensor) -> Tensor:
        images = images_NCHW.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return self.inputs.net.features(theta_P.to(self.dtype), images)[-1].float()

    # ---- items and their data ---------------------------------------------------------------------------------------

    def plan(self, step: int) -> list[Item]:
        classes = self.inputs.spec.classes
        size = self.frame.classes_per_item or max(
            1, min(classes, ITEM // (4 * self.batch_real * self.inputs.spec.floats))
        )
        runs = [(first, min(first + size, classes)) for first in range(0, classes, size)]
        return [
            Item(step, number, seed_of(self.inputs.seed, "item", step, number), {"first": first, "last": last})
            for number, (first, last) in enumerate(runs)
        ]

    def halve(self) -> bool:
        """Real images pass in smaller blocks."""
        self.block //= 2
        return self.block > 0

    def source(self, step: int) -> Source:
        """The network of a step (and the objective's own noise), the same for all its items; fresh by default."""
        return Source(self.inputs.net.init(generator(self.inputs.seed, "net", step)).to(self.inputs.device))

    def _source(self, step: int) -> Source:
        if self._shared is None or self._shared[0] != step:
            self._shared = (step, self.source(step))
        return self._shared[1]

    def _seed(self, step: int, c: int) -> int:
        return seed_of(self.inputs.seed, "class", step, c)

    def draw(self, step: int, c: int) -> Draw:
        """The augmentation of class c at this step, for real and synthetic images alike."""
        rng = generator(self._seed(step, c), "augment")
        return self.augment.draw(rng, 1, self.inputs.spec.shape).to(self.inputs.device)

    def rows(self, step: int, c: int) -> Tensor:
        """Which real images of class c: without repetition, unless the class has fewer than asked."""
        members = self.members[c]
        order = members[torch.randperm(len(members), generator=generator(self._seed(step, c), "real"))]
        return order.repeat(-(-self.batch_real // len(order)))[: self.batch_real]

    def fetch(self, item: Item) -> Batch:
        classes = range(item.what["first"], item.what["last"])
        rows = [self.rows(item.step, c) for c in classes]
        with torch.no_grad():
            pairs = zip(rows, classes, strict=True)
            real = [self.augment(self.inputs.real(r), self.draw(item.step, c)) for r, c in pairs]
        targets = [self.inputs.targets(r) for r in rows]
        return Batch(self._source(item.step), torch.stack(real), torch.stack(targets))

    def synthetic(self, codec: Codec, item: Item) -> Synthetic:
        """The item's synthetic images, decoded at once and augmented class by class."""
        index = [self._of_class(codec, item.step, c) for c in range(item.what["first"], item.what["last"])]
        counts = tuple(map(len, index))
        index_N = torch.cat(index)
        images_NCHW, labels_NK = codec.decode(index_N)
        parts = images_NCHW.split(list(counts))
        draws = [self.draw(item.step, c) for c in range(item.what["first"], item.what["last"])]
        views = [self.augment(part, draw) for part, draw in zip(parts, draws, strict=True)]
        return Synthetic(index_N, images_NCHW, labels_NK, torch.cat(views), counts)

    def _of_class(self, codec: Codec, step: int, c: int) -> Tensor:
        index = codec.of_class(c)
        if self.frame.batch_syn is None or self.frame.batch_syn >= len(index):
            return index
        order = torch.randperm(len(index), generator=generator(self._seed(step, c), "index"))
        return index[order[: self.frame.batch_syn]]

    # ---- networks ---------------------------------------------------------------------------------------------------

    def embed(self, theta_P: Tensor, images_NCHW: Tensor) -> Tensor:
        """Features [N, D] that the images get a gradient from."""
        return self._embed(theta_P, images_NCHW)  # type: ignore[no-any-return]

    def embed_real(self, theta_P: Tensor, images_NCHW: Tensor) -> Tensor:
        """Features without a gradient, block by block."""
        with torch.no_grad():
            blocks: Sequence[Tensor] = images_NCHW.split(self.block)
            return torch.cat([self._embed(theta_P, block) for block in blocks])

    def scene(self, data: Batch, theta_P: Tensor, syn: Synthetic) -> dict[str, object]:
        return {
            "net": self.inputs.net,
            "theta": theta_P,
            "index": syn.index_N,
            "images": syn.images_NCHW,
            "labels": syn.labels_NK,
            "views": syn.views_NCHW,
            "real_images": data.real_GnCHW.flatten(0, 1),
            "real_labels": data.targets_GnK.flatten(0, 1).argmax(1),
        }


def refuse_untrained_batch_norm(inputs: Inputs) -> None:
    """Running statistics of a network that was never trained are those of no data."""
    if inputs.net.norm == "batch":
        raise refuse(
            "net.norm",
            "batch",
            "instance, group or none under fresh networks",
            "choose net.norm=instance, or an objective with a pool of trained networks",
        )
