"""Multi-formation, a decorator of any codec: Kim et al. (IDC), ICML 2022, arXiv:2205.14959, as NCFM uses it.

Each image of the codec underneath is f x f cells; every cell, scaled up bilinearly to the full size, is an image: f^2
times as many for the same floats. A start from real images tiles f^2 of them, shrunk to cells, into each stored one.

Stored: nothing of its own. Index: (..., cell). Where f does not divide the side, the image is padded at its bottom and
right with the mean of the data (0 in network space; the release pads with grey).

In YAML the codec underneath is `of`, and its options stand beside `factor`: {name: formation, factor: 2, of: lodc,
rank: 4}.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.distill.budget import Budget, Stored
from rayd.distill.codec import Family, Take
from rayd.distill.contract import Codec, Player
from rayd.distill.fit import CodecOptions
from rayd.errors import refuse
from rayd.methods.haba import Haba
from rayd.methods.lodc import Lodc
from rayd.methods.lss import Lss
from rayd.methods.nsd import Nsd
from rayd.methods.pixel import Pixel
from rayd.schema import parse, to_dict

log = logging.getLogger(__name__)

OF: dict[str, type[Family]] = {"pixel": Pixel, "lodc": Lodc, "lss": Lss, "nsd": Nsd, "haba": Haba}
THIN = 4
"""Pixels of a cell for each rank below which it is thin."""


def _under(name: str) -> Any:
    """An option that is the one of the codec underneath."""
    return property(lambda config: getattr(config.under, name))


class Formation(Codec):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        """rank, sharing and every other option are those of the codec underneath."""

        factor: int = 2
        """f: cells along each side."""
        under: CodecOptions = field(default_factory=Pixel.Config)

        def __post_init__(self) -> None:
            if self.factor < 1:
                raise refuse("codec.factor", self.factor, "a whole number from 1 (2 as published)")

        @classmethod
        def from_plain(cls, mapping: Mapping[str, Any], where: str = "") -> Formation.Config:
            rest = dict(mapping)
            name, factor = rest.pop("of", "pixel"), rest.pop("factor", 2)
            if name not in OF:
                raise refuse(f"{where}.of", name, " | ".join(OF), "one decorator at a time")
            if type(factor) is not int:
                raise refuse(f"{where}.factor", factor, "a whole number from 1 (2 as published)")
            return cls(factor=factor, under=parse(OF[name].Config, rest, where))

        def to_plain(self) -> dict[str, Any]:
            name = next(name for name, family in OF.items() if isinstance(self.under, family.Config))
            plain: dict[str, Any] = to_dict(self.under)
            return {"factor": self.factor, "of": name, **plain}

        rank, sharing, labels, storage, start = map(_under, ("rank", "sharing", "labels", "storage", "start"))
        learns_labels, needs = _under("learns_labels"), _under("needs")
        all_shapes, floats, fill, within = map(_under, ("all_shapes", "floats", "fill", "within"))
        stored_as, fixed_shapes, filled = map(_under, ("stored_as", "fixed_shapes", "filled"))
        need, resolved = _under("need"), _under("resolved")

        def decoded(self, spec: Spec) -> int:
            return self.factor**2 * self.under.decoded(spec)

        def describe(self, budget: Budget, spec: Spec) -> str:
            return f"{self.under.describe(budget, spec)} x {self.factor**2} cells"

        def fit(self, budget: Budget, spec: Spec) -> Formation.Config:
            side = min(spec.shape[-2:])
            if self.factor > side // 2:
                allowed = f"1 to {side // 2}, so that a cell has two pixels a side"
                raise refuse("codec.factor", self.factor, allowed, f"codec.factor={side // 2}")
            fitted = replace(self, under=self.under.fit(budget, spec))
            if isinstance(fitted.under, Lodc.Config | Lss.Config):
                cell, rank = side // self.factor, fitted.under.rank or 1
                if self.factor > 1 and rank < self.factor * max(1, cell // THIN // 2):
                    log.warning(
                        "codec.factor=%d leaves cells of %d px to share images of rank %d: little is left of each; "
                        "codec.rank=%d or more, or codec.factor=1, keeps more",
                        self.factor, cell, rank, self.factor * max(1, cell // THIN // 2),
                    )  # fmt: skip
            return fitted

        def build(self, spec: Spec, rng: torch.Generator) -> Formation:
            return Formation(self, self.under.build(spec, rng))

    def __init__(self, config: Config, under: Family) -> None:
        super().__init__()
        self.config, self.under, self.spec = config, under, under.spec
        self.cells = config.factor**2
        self.axes = under.axes | {"cell": self.cells}
        self.learns_labels = under.learns_labels

    def __len__(self) -> int:
        return len(self.under) * self.cells

    def classes(self) -> Tensor:
        return self.under.classes().repeat_interleave(self.cells)

    @property
    def full_batch(self) -> int:
        """All cells; of a codec with a smaller largest minibatch (HaBa), one cell of each of its images."""
        full = self.under.full_batch
        return len(self) if full == len(self.under) else full

    def draws(self, rng: torch.Generator, n: int, batches: int) -> list[Tensor]:
        """Minibatches as the codec underneath takes them, a random cell of each image, while it has enough images."""
        n = min(n, self.full_batch)
        if n >= len(self.under):
            return super().draws(rng, n, batches)
        return [
            index_N * self.cells + torch.randint(self.cells, index_N.shape, generator=rng)
            for index_N in self.under.draws(rng, n, batches)
        ]

    def images(self, index_N: Tensor) -> Tensor:
        whole_M, place_N = (index_N // self.cells).unique(return_inverse=True)
        cell_N = index_N % self.cells
        grid = split(self.under.images(whole_M), self.config.factor)
        device = grid.device
        chosen = grid[place_N.to(device), cell_N.to(device)]
        return scaled(chosen, self.spec)

    def decode(self, index_N: Tensor) -> tuple[Tensor, Tensor]:
        return self.images(index_N), self.under.targets(index_N // self.cells)

    @torch.no_grad()
    def encode(self, take: Take, rng: torch.Generator) -> None:
        self.under.encode(lambda c, n: tiled(take(c, n * self.cells), self.config.factor), rng)

    @torch.no_grad()
    def teach(self, predict: Callable[[Tensor, Tensor], Tensor]) -> None:
        """A label stands for all cells of its images."""

        def mean_over_cells(x_NCHW: Tensor, class_N: Tensor) -> Tensor:
            cells = split(x_NCHW, self.config.factor)
            class_of_cell = class_N.repeat_interleave(cells.shape[1])
            logits = predict(scaled(cells.flatten(0, 1), self.spec), class_of_cell)
            mean_NK: Tensor = logits.unflatten(0, cells.shape[:2]).mean(1)
            return mean_NK

        self.under.teach(mean_over_cells)

    def project(self, transform: Transform) -> None:
        self.under.project(transform)

    def players(self) -> list[Player]:
        """A cell's pixel is about one pixel of the codec underneath, so its scales hold."""
        return self.under.players()

    def stored(self) -> dict[str, Stored]:
        return self.under.stored()


def scaled(x_NCHW: Tensor, spec: Spec) -> Tensor:
    """Cells at the size of images."""
    return F.interpolate(x_NCHW, size=spec.shape[-2:], mode="bilinear", align_corners=False)


def split(x_NCHW: Tensor, factor: int) -> Tensor:
    """Cells in row-major order: [N, f * f, C, h, w]."""
    down, right = (-x_NCHW.shape[2] % factor, -x_NCHW.shape[3] % factor)
    padded = F.pad(x_NCHW, (0, right, 0, down))
    rows = padded.unflatten(3, (factor, -1)).unflatten(2, (factor, -1))
    cells: Tensor = rows.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    return cells


def tiled(x_NCHW: Tensor, factor: int) -> Tensor:
    """The inverse for a start: n * f * f images shrunk to cells of n."""
    _, channels, height, width = x_NCHW.shape
    h, w = -(-height // factor), -(-width // factor)
    cells = F.interpolate(x_NCHW, size=(h, w), mode="area").unflatten(0, (-1, factor, factor))
    whole: Tensor = cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, factor * h, factor * w)
    return whole[:, :, :height, :width]
