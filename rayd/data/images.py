"""Datasets as uint8 images in memory-mapped files: decoded once, named by what they hold, split by plan.

A split is a view: mapped files and the rows that belong to it. Shapes: N images, C channels, H, W sides.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayd.data.builder import build, cache_folder, save_array
from rayd.seeds import generator

CHUNK = 2**24
"""Bytes of images in memory at a time while the whole set is read."""
LONGER = 4
"""How many times as long a set may become where its small classes are repeated."""
KEPT = 2**29
"""Bytes of images from which on a histogram is kept in the cache folder."""


@dataclass(frozen=True)
class Spec:
    """What a dataset's examples are: the shape of an image and the number of classes."""

    shape: tuple[int, ...]
    classes: int

    @property
    def floats(self) -> int:
        """Numbers in one image."""
        return math.prod(self.shape)


class Pixels:
    """Rows of mapped files in the order of an index, read like a uint8 tensor [N, C, H, W] on the CPU."""

    dtype, device = torch.uint8, torch.device("cpu")

    def __init__(self, files: Sequence[Tensor], index_N: Tensor | None = None) -> None:
        self.files = tuple(files)
        self.starts = torch.tensor([0, *accumulate(map(len, self.files))])
        self.index_N = torch.arange(int(self.starts[-1])) if index_N is None else index_N

    def __len__(self) -> int:
        return len(self.index_N)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self.files[0].shape[1:]))

    def numel(self) -> int:
        return self.shape.numel()

    def __getitem__(self, key: Any) -> Tensor:
        """A copy of these rows: a number, a slice, a mask or a tensor of numbers."""
        rows = self.index_N[key]
        row_N = rows.flatten()
        if len(self.files) == 1:
            return self.files[0][row_N].view(*rows.shape, *self.shape[1:])
        pixels_NCHW = torch.empty(len(row_N), *self.shape[1:], dtype=self.dtype)
        file_N = torch.searchsorted(self.starts, row_N, right=True) - 1
        for f in file_N.unique().tolist():
            here = (file_N == f).nonzero().flatten()
            pixels_NCHW[here] = self.files[f][row_N[here] - self.starts[f]]
        return pixels_NCHW.view(*rows.shape, *self.shape[1:])

    def select(self, index_N: Tensor) -> Pixels:
        return Pixels(self.files, self.index_N[index_N])

    def to(self, device: torch.device | str) -> Tensor | Pixels:
        """All of them on another device; on the CPU they stay where they are mapped."""
        if torch.device(device).type == "cpu":
            return self
        pixels_NCHW = torch.empty(self.shape, dtype=self.dtype, device=device)
        step = max(1, CHUNK // max(self.shape[1:].numel(), 1))
        for start in range(0, len(self), step):
            pixels_NCHW[start : start + step] = self[start : start + step].to(device)
        return pixels_NCHW


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images; pixels may lie in mapped files, so read rows, not all."""

    pixels_NCHW: Tensor | Pixels
    labels_N: Tensor
    classes: tuple[str, ...]
    name: str
    manifest: dict[str, Any]
    """name, source, counts, skipped files, content hash, and the config's statistics where it gives some."""
    known_histogram_CV: np.ndarray[Any, Any] | None = None
    selected_from: tuple[Images, Tensor] | None = None
    """The larger set that these images are rows of, and which rows."""

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def spec(self) -> Spec:
        return Spec(tuple(self.pixels_NCHW.shape[1:]), len(self.classes))

    @cached_property
    def members(self) -> tuple[Tensor, ...]:
        """For each class the indices of its examples, ascending; one pass over the labels."""
        sizes = torch.bincount(self.labels_N, minlength=len(self.classes)).tolist()
        return tuple(self.labels_N.argsort(stable=True).split(sizes))

    def of_class(self, c: int) -> Tensor:
        """Indices of the examples of class c, ascending."""
        return self.members[c]

    def distinct(self, c: int) -> Tensor:
        """Indices of the examples of class c, those that are repeated for balance once."""
        rows = self.members[c]
        if self.selected_from is None or len(rows) == 0:
            return rows
        source = self.selected_from[1][rows]
        return rows[torch.cat([torch.tensor([True]), source[1:] != source[:-1]])]

    def sample(self, n: int, seed: int = 0) -> Images:
        """n examples with every class in its share (the largest remainders first), drawn by the seed; all where n is more.

        The first n examples would not do: a folder's images lie class after class.
        """
        if n >= len(self):
            return self
        exact = [n * len(rows) / len(self) for rows in self.members]
        sizes = [int(share) for share in exact]
        by_remainder = sorted(range(len(exact)), key=lambda c: (sizes[c] - exact[c], c))
        for c in by_remainder[: n - sum(sizes)]:
            sizes[c] += 1
        rng = generator(seed, "sample", n)
        parts = [
            rows[torch.randperm(len(rows), generator=rng)[:k]] for rows, k in zip(self.members, sizes, strict=True)
        ]
        return self.select(torch.cat(parts).sort().values)

    def select(self, index_N: Tensor) -> Images:
        """A view of these examples. The content hash follows from ours and the index."""
        first, n = int(index_N[0]) if len(index_N) else 0, len(index_N)
        contiguous = bool(torch.equal(index_N, torch.arange(first, first + n)))
        if contiguous and n == len(self):
            return self
        pixels = self.pixels_NCHW
        if contiguous and isinstance(pixels, Tensor):
            pixels = pixels[first : first + n]
        else:
            pixels = (pixels if isinstance(pixels, Pixels) else Pixels([pixels])).select(index_N)
        labels_N = self.labels_N[index_N]
        digest = hashlib.sha256(str(self.manifest["content"]).encode() + index_N.to(torch.int64).numpy().tobytes())
        manifest = self.manifest | {"content": digest.hexdigest(), "counts": counts(labels_N, self.classes)}
        return Images(pixels, labels_N, self.classes, self.name, manifest, selected_from=(self, index_N))

    @cached_property
    def histogram_CV(self) -> np.ndarray[Any, Any]:
        """How often each channel has each of the 256 values: known, or out of the set we are rows of, or counted.

        Of most rows of a set it is the set's histogram less that of the other rows, so that a training split costs one
        pass over its validation images.
        """
        if self.known_histogram_CV is not None:
            return self.known_histogram_CV
        if self.pixels_NCHW.numel() < KEPT:
            return self._count()
        name = hashlib.sha256(str(self.manifest["content"]).encode()).hexdigest()[:32]
        path = cache_folder() / f"histogram-{name}.npy"
        build(path, Path.exists, lambda draft: save_array(draft, self._count()))
        return np.asarray(np.load(path, allow_pickle=False), np.int64)

    def _count(self) -> np.ndarray[Any, Any]:
        if self.selected_from is not None:
            whole, index_N = self.selected_from
            others = torch.ones(len(whole), dtype=torch.bool)
            others[index_N] = False
            known = whole.known_histogram_CV
            if known is not None and int(others.sum()) == len(whole) - len(self) < len(self):
                rest = histogram(whole.select(others.nonzero().flatten()).pixels_NCHW)
                return np.asarray(known - rest)
        return histogram(self.pixels_NCHW)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel on [0, 1]: the config's, else exact ones of these images."""
        known = self.manifest.get("given") or statistics_of(self.histogram_CV)
        return torch.tensor(known["mean"]), torch.tensor(known["std"])

    def facts(self, statistics: bool) -> dict[str, Any]:
        """The manifest, with the images' own statistics where something was fitted to them."""
        if not statistics or self.manifest.get("given"):
            return dict(self.manifest)
        return self.manifest | {"statistics": statistics_of(self.histogram_CV)}


@dataclass(frozen=True)
class Splits:
    """Training, validation (carved out of training, for choosing) and test (read once)."""

    train: Images
    val: Images
    test: Images


def seeded_order(n: int, seed: int) -> Tensor:
    """The order whose head is the validation split."""
    return torch.randperm(n, generator=generator(seed, "split"))


def balance_rows(labels_N: Tensor, seed: int) -> Tensor:
    """All rows in order, those of small classes several times: until each class has as many as the largest, or until the
    set is LONGER times as long."""
    sizes = [size for size in torch.bincount(labels_N).tolist() if size]
    low, high = min(sizes, default=0), max(sizes, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(max(size, middle) for size in sizes) <= LONGER * len(labels_N)
        low, high = (middle, high) if fits else (low, middle - 1)
    rows = [torch.arange(len(labels_N))]
    for c in labels_N.unique().tolist():
        members = (labels_N == c).nonzero().flatten()
        times, more = divmod(max(low - len(members), 0), len(members))
        drawn = torch.randperm(len(members), generator=generator(seed, "balance", c))[:more]
        rows += [members.repeat(times), members[drawn]]
    return torch.cat(rows).sort().values


def counts(labels_N: Tensor, classes: tuple[str, ...]) -> dict[str, int]:
    return dict(zip(classes, torch.bincount(labels_N, minlength=len(classes)).tolist(), strict=True))


def histogram(pixels_NCHW: Tensor | Pixels, chunk: int | None = None) -> np.ndarray[Any, Any]:
    """[C, 256], a chunk of images at a time: exact, and independent of the chunks."""
    channels = pixels_NCHW.shape[1]
    histogram_CV = np.zeros((channels, 256), np.int64)
    step = chunk or max(1, CHUNK // max(pixels_NCHW.shape[1:].numel(), 1))
    for start in range(0, len(pixels_NCHW), step):
        block = pixels_NCHW[start : start + step]
        for c in range(channels):
            histogram_CV[c] += torch.bincount(block[:, c].reshape(-1), minlength=256).numpy()
    return histogram_CV


def statistics_of(histogram_CV: np.ndarray[Any, Any]) -> dict[str, list[float]]:
    values = np.arange(256) / 255
    total = np.maximum(histogram_CV.sum(1), 1)
    mean = (histogram_CV @ values) / total
    var = (histogram_CV @ values**2) / total - mean**2
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(var, 1e-12)).tolist()}
