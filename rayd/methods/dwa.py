"""Directed weight adjustment. Du et al., NeurIPS 2024, arXiv:2409.17612; SRe2L (Yin et al., NeurIPS 2023, arXiv:2306.13092)
is the setting without the perturbation (`ascents: 0`, `variance: 1`), and with a start from noise (`codec.start: noise`).

A block is one image of each class of a run of classes. DWA's start real, and its teacher is the trained network, moved by
K steps of gradient ascent on that start: theta <- theta + rho/K g/|g|, g = grad CE on the start, so |moved| <= rho. Then

    L = CE(f_theta(A(x)), y) + bn * sum_l m_l (variance |var_l - running var_l| + |mean_l - running mean_l|),  m_first = 10

Blocks know nothing of each other: each is an item, its draws come from (seed, step, block), it moves its own images only,
and `only` runs one alone with the same result. The published code starts blocks after the first from a teacher that the
earlier ones have moved, and with their gradients left in it; here every block starts from the trained network.

The releases run Adam at 0.25 with betas 0.5 and 0.9 (`optimiser.beta2`) and a cosine. What we changed: A is a roll, as for
CIFAR, after any of our augmentations; the teacher that labels is in evaluation mode (the release's normalises by the
batch); the 8-bit JPEG files are a codec, whatever its storage. Labels are asked of the unmoved teacher: at evaluation, which
then lies beside the budget, or every `relabel` steps into the codec's soft labels, which the ledger counts.

Shapes: N images of a block, K classes, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from rayd.data.augment import AugmentConfig
from rayd.distill.budget import Stored
from rayd.distill.contract import Codec, Inputs, Item, Match, Objective
from rayd.distill.unroll import DTYPES
from rayd.errors import refuse
from rayd.machine import compiled
from rayd.seeds import generator, seed_of

FIRST = 10.0
"""Weight of the first batch norm beside 1 for the others, as published."""
TINY = 1e-12
CHUNK = 256


class Dwa(Objective):
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})
    uses_labels: ClassVar[bool] = True
    """Not by gradient: `relabel` writes the teacher's into a codec that keeps soft ones."""
    multiclass: ClassVar[bool] = True
    reduction: ClassVar[str] = "sum"
    gives: ClassVar[frozenset[str]] = frozenset({"net", "theta", "index", "images", "labels", "views"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        blocks: int = 1
        """Images of each class: as many as the codec decodes."""
        classes_per_item: int = 0
        """Classes of one block; 0: all."""
        only: int | None = None
        """This item alone; the others' images stay as they started."""
        ascents: int = 12
        """K; 0: the teacher as it is (SRe2L)."""
        rho: float = 0.015
        bn: float = 0.01
        """Weight of the batch norm losses."""
        variance: float = 11.0
        """Of the variances within them, beside 1 for the means."""
        jitter: int = 4
        """Images are rolled by up to so many pixels each way."""
        augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(ops=()))
        expert: int = 0
        """Which of the buffer's networks is the teacher, at its last epoch."""
        relabel: int = 0
        """Steps between two writings of the teacher's labels into the codec (the last step is to be one); 0: never."""

        def __post_init__(self) -> None:
            if self.blocks < 1:
                raise refuse("objective.blocks", self.blocks, "the codec's images per class, at least 1")
            for name in ("classes_per_item", "ascents", "rho", "bn", "variance", "jitter", "expert", "relabel"):
                if getattr(self, name) < 0:
                    raise refuse(f"objective.{name}", getattr(self, name), "zero or more")

        def alone(self, classes: int) -> list[Dwa.Config]:
            """Every item as the only one of a run; none where this is such a run, or there is nothing to part."""
            items = self.blocks * len(class_runs(classes, self.classes_per_item))
            whole = self.only is not None or self.relabel or items == 1
            return [] if whole else [replace(self, only=number) for number in range(items)]

        def build(self, inputs: Inputs) -> Dwa:
            return Dwa(self, inputs)

    def __init__(self, config: Config, inputs: Inputs) -> None:
        super().__init__()
        if inputs.net.norm != "batch":
            raise refuse("net.norm", inputs.net.norm, "batch: the statistics to match are those of batch norm",
                         "net=convnet_bn or net=resnet18_bn, and experts of it")  # fmt: skip
        if config.expert >= inputs.experts:
            raise refuse("objective.expert", config.expert, f"below the buffer's {inputs.experts} experts")
        self.config, self.inputs = config, inputs
        self.runs = class_runs(inputs.spec.classes, config.classes_per_item)
        if config.only is not None and not 0 <= config.only < config.blocks * len(self.runs):
            raise refuse(
                "objective.only", config.only, f"0 to {config.blocks * len(self.runs) - 1}, an item of the run"
            )
        self.teacher_P = inputs.theta(config.expert, inputs.last_epoch).float()
        self.augment = config.augment.build()
        self.dtype = DTYPES[inputs.precision]
        self.start_NCHW: Tensor | None = None
        self._moved: dict[int, Tensor] = {}
        self._loss = compiled(self._parts, inputs.device, inputs.compiled)

    # ---- state: the start, from which every moved teacher follows ----------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        return {} if self.start_NCHW is None else {"start": self.start_NCHW.clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.start_NCHW = state["start"].clone() if "start" in state else None
        self._moved = {}

    def stored(self) -> dict[str, Stored]:
        """The teacher, for recipes that ask it; not where the codec keeps its labels."""
        return {} if self.config.relabel else {"teacher": Stored(self.teacher_P, "teacher")}

    # ---- items -------------------------------------------------------------------------------------------------------

    def plan(self, step: int) -> list[Item]:
        items = []
        for number in range(self.config.blocks * len(self.runs)):
            block, run = divmod(number, len(self.runs))
            first, last = self.runs[run]
            what = {"block": block, "first": first, "last": last}
            items.append(Item(step, number, seed_of(self.inputs.seed, "item", step, number), what))
        return items if self.config.only is None else [items[self.config.only]]

    def index(self, codec: Codec, item: Item) -> Tensor:
        """The block's images: one of each of its classes."""
        return torch.stack(
            [codec.of_class(c)[item.what["block"]] for c in range(item.what["first"], item.what["last"])]
        )

    def view(self, images_NCHW: Tensor, item: Item) -> Tensor:
        """Augmented and rolled, by the item's own draws."""
        draw = self.augment.draw(generator(item.seed, "augment"), len(images_NCHW), self.inputs.spec.shape)
        most = self.config.jitter
        shift = torch.randint(-most, most + 1, (2,), generator=generator(item.seed, "roll")).tolist()
        return self.augment(images_NCHW, draw).roll(shift, (2, 3))

    def forward(self, codec: Codec, item: Item, data: None) -> Match:
        if self.start_NCHW is None:
            self._begin(codec)
        index_N = self.index(codec, item)
        images_NCHW, labels_NK = codec.decode(index_N)
        classes_N = torch.arange(item.what["first"], item.what["last"], device=images_NCHW.device)
        views_NCHW = self.view(images_NCHW, item)
        theta_P = self.moved(index_N, item)
        entropy, norms = self._loss(theta_P.to(self.dtype), views_NCHW.to(self.dtype), classes_N)
        metrics: dict[str, Tensor | float] = {"entropy": entropy.detach(), "bn": norms.detach()}
        scene = {"net": self.inputs.net, "theta": theta_P, "index": index_N, "images": images_NCHW, "labels": labels_NK,
                 "views": views_NCHW}  # fmt: skip
        return Match(entropy + self.config.bn * norms, metrics, scene)

    def _parts(self, theta_P: Tensor, views_NCHW: Tensor, classes_N: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy, and how far the batch's statistics are from what the teacher remembers."""
        logits_NK, seen = self.inputs.net.moments(theta_P, views_NCHW)
        total = logits_NK.new_zeros((), dtype=torch.float32)
        for i, layer in enumerate(seen):
            variance = (layer.var_C - layer.running_var_C).float().norm()
            mean = (layer.mean_C - layer.running_mean_C).float().norm()
            total = total + (FIRST if i == 0 else 1.0) * (self.config.variance * variance + mean)
        return F.cross_entropy(logits_NK.float(), classes_N), total

    # ---- the moved teacher -------------------------------------------------------------------------------------------

    def _begin(self, codec: Codec) -> None:
        """Before any step: what the codec decodes is the real start."""
        counts = {len(codec.of_class(c)) for c in range(self.inputs.spec.classes)}
        if counts != {self.config.blocks}:
            raise refuse("objective.blocks", self.config.blocks, f"the codec's images per class, here {sorted(counts)}",
                         f"set method.objective.blocks={max(counts)}")  # fmt: skip
        if codec.learns_labels and not self.config.relabel:
            raise refuse("objective.relabel", 0, "a number of steps where the codec keeps soft labels",
                         "set it to method.steps, or method.codec.labels=hard")  # fmt: skip
        with torch.no_grad():
            parts = torch.arange(len(codec)).split(CHUNK)
            self.start_NCHW = torch.cat([codec.decode(part)[0].detach() for part in parts]).clone()

    def moved(self, index_N: Tensor, item: Item) -> Tensor:
        """The teacher of a block: made from its start when first asked for, the trained network itself is untouched."""
        if item.number not in self._moved:
            assert self.start_NCHW is not None
            origin = Item(0, item.number, seed_of(self.inputs.seed, "item", 0, item.number), item.what)
            views_NCHW = self.view(self.start_NCHW[index_N.to(self.start_NCHW.device)], origin)
            classes_N = torch.arange(item.what["first"], item.what["last"], device=views_NCHW.device)
            self._moved[item.number] = self.ascend(views_NCHW, classes_N)
        return self._moved[item.number]

    def ascend(self, views_NCHW: Tensor, classes_N: Tensor) -> Tensor:
        """K normalised steps up the cross entropy, in the parameters; running statistics stay."""
        net, head = self.inputs.net, slice(0, self.inputs.net.trainable)

        def entropy(theta_P: Tensor) -> Tensor:
            return F.cross_entropy(net(theta_P, views_NCHW), classes_N)

        theta_P = self.teacher_P.clone()
        for _ in range(self.config.ascents):
            g_P = grad(entropy)(theta_P)[head]
            theta_P[head] += self.config.rho / self.config.ascents * g_P / (g_P.norm() + TINY)
        return theta_P

    # ---- labels ------------------------------------------------------------------------------------------------------

    def after(self, codec: Codec, step: int) -> None:
        if self.config.relabel and (step + 1) % self.config.relabel == 0:
            teach = getattr(codec, "teach", None)
            if teach is None or not codec.learns_labels:
                raise refuse("objective.relabel", self.config.relabel, "0 for a codec with hard labels",
                             "set method.codec.labels=soft")  # fmt: skip
            teach(lambda images_NCHW, class_N: self.predict(images_NCHW))

    @torch.no_grad()
    def predict(self, images_NCHW: Tensor) -> Tensor:
        """Logits of the unmoved teacher."""
        return self.inputs.net(self.teacher_P, images_NCHW)


def class_runs(classes: int, size: int) -> list[tuple[int, int]]:
    size = size or classes
    return [(first, min(first + size, classes)) for first in range(0, classes, size)]
