"""Datasets as uint8 images in memory-mapped files: decoded once, named by what they hold, split by plan.

`rayd.data.load` finds the dataset, decodes it into the cache (`$RAYD_CACHE`, or ~/.cache/rayd) the first time, maps
it every time after, and carves the validation split out of the training set. The layouts it knows are in formats.py.

Shapes: N images, C channels, H, W sides.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayd.seeds import generator


@dataclass(frozen=True)
class Spec:
    """What a dataset's examples are: the shape of an image and the number of classes."""

    shape: tuple[int, ...]
    classes: int

    @property
    def floats(self) -> int:
        """Numbers in one image."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images; pixels may be a view of a mapped file, so read rows, not all."""

    pixels_NCHW: Tensor
    labels_N: Tensor
    classes: tuple[str, ...]
    name: str
    manifest: dict[str, Any]
    """name, source, counts, skipped files, content hash, and statistics where they are known or given."""

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def spec(self) -> Spec:
        return Spec(tuple(self.pixels_NCHW.shape[1:]), len(self.classes))

    def of_class(self, c: int) -> Tensor:
        """Indices of the examples of class c, ascending."""
        return (self.labels_N == c).nonzero().flatten()

    def select(self, index_N: Tensor) -> Images:
        """These examples; a run of neighbours stays a view. The content hash follows from ours and the index."""
        first, n = int(index_N[0]) if len(index_N) else 0, len(index_N)
        run = bool(torch.equal(index_N, torch.arange(first, first + n)))
        pixels, labels = ((t[first : first + n] if run else t[index_N]) for t in (self.pixels_NCHW, self.labels_N))
        if run and n == len(self):
            return self
        digest = hashlib.sha256(str(self.manifest["content"]).encode() + index_N.to(torch.int64).numpy().tobytes())
        manifest = {key: value for key, value in self.manifest.items() if key != "statistics"}
        manifest |= {"content": digest.hexdigest(), "counts": counts(labels, self.classes)}
        return Images(pixels, labels, self.classes, self.name, manifest)

    def sample(self, n: int, seed: int) -> Images:
        """At most n of them by plan, of every class alike as far as it has that many."""
        order_N = torch.randperm(len(self), generator=generator(seed, "sample"))
        by_class_N = order_N[self.labels_N[order_N].argsort(stable=True)]
        labels_N = self.labels_N[by_class_N]
        place_N = torch.arange(len(self)) - torch.searchsorted(labels_N, labels_N)
        first = (place_N * len(self.classes) + labels_N).argsort()[:n]
        return self.select(by_class_N[first].sort().values)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel on [0, 1]: the config's, else exact ones of these images."""
        known = self.manifest.get("given") or self.manifest.get("statistics")
        if known is None:
            known = self.manifest["statistics"] = channel_statistics(self.pixels_NCHW)
        return torch.tensor(known["mean"]), torch.tensor(known["std"])


@dataclass(frozen=True)
class Splits:
    """Training, validation (carved out of training, for choosing) and test (read once)."""

    train: Images
    val: Images
    test: Images


def seeded_order(n: int, seed: int) -> Tensor:
    """The order whose head is the validation split."""
    return torch.randperm(n, generator=generator(seed, "split"))


def counts(labels_N: Tensor, classes: tuple[str, ...]) -> dict[str, int]:
    found = torch.bincount(labels_N, minlength=len(classes)).tolist()
    return dict(zip(classes, found, strict=True))


def channel_statistics(pixels_NCHW: Tensor, chunk: int = 500) -> dict[str, list[float]]:
    """Exact, out of one histogram per channel, so that it neither depends on chunks nor holds the set in floats."""
    channels = pixels_NCHW.shape[1]
    histogram_CV = np.zeros((channels, 256), np.int64)
    for start in range(0, len(pixels_NCHW), chunk):
        block = pixels_NCHW[start : start + chunk].numpy()
        for c in range(channels):
            histogram_CV[c] += np.bincount(block[:, c].ravel(), minlength=256)
    return statistics_of(histogram_CV)


def statistics_of(histogram_CV: np.ndarray[Any, Any]) -> dict[str, list[float]]:
    values = np.arange(256) / 255
    total = np.maximum(histogram_CV.sum(1), 1)
    mean = (histogram_CV @ values) / total
    var = (histogram_CV @ values**2) / total - mean**2
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(var, 1e-12)).tolist()}


def cache_folder() -> Path:
    return Path(os.environ.get("RAYD_CACHE") or Path.home() / ".cache" / "rayd").expanduser()
