"""Datasets as uint8 images in memory-mapped files: decoded once, named by what they hold, split by plan.

`DataConfig.load()` finds the dataset, decodes it into the cache (`$RAYD_CACHE`, or ~/.cache/rayd) the first time, maps
it every time after, and carves the validation split out of the training set. The layouts it knows are in formats.py.

Shapes: N images, C channels, H, W sides.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rayd.errors import refuse
from rayd.seeds import generator

Name = Literal[
    "digits",
    "cifar10",
    "cifar100",
    "svhn",
    "mnist",
    "fashion",
    "tiny",
    "imagenette128",
    "imagenette",
    "imagewoof",
    "imagefruit",
    "imageyellow",
    "imagemeow",
    "imagesquawk",
    "folder",
    "parquet",
    "webdataset",
    "prepared",
    "generated",
]
NEED_PATH = ("folder", "parquet", "webdataset", "prepared")


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


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which dataset, where it is, and how it is split."""

    name: Name = "digits"
    """The dataset, or the layout of a folder."""
    path: str | None = None
    """Folder of the dataset; null: $RAYD_DATA/NAME, then data/NAME and data/ here."""
    size: int | None = None
    """Side in pixels; null: the dataset's own."""
    channels: Literal[1, 3] | None = None
    """1 or 3; null: the dataset's own (grey for digits and MNIST, else RGB)."""
    resize: Literal["squash", "crop", "pad"] = "squash"
    """What happens to the aspect ratio: the whole image squashed, its middle cut out, or borders added."""
    val: float = 0.1
    """Validation images: a share of the training set below 1, else a count."""
    split: Literal["seeded", "next"] = "seeded"
    """seeded: validation images are drawn; next: they are the rows after `limit` (for sets already shuffled)."""
    limit: int | None = None
    """At most this many training images."""
    seed: int = 0
    """Of the split, and of generated images."""
    mean: tuple[float, ...] | None = None
    """Of each channel, to normalise by; null: the training images' own."""
    std: tuple[float, ...] | None = None
    """Of each channel, to normalise by; null: the training images' own."""
    max_bad: float = 0.01
    """Largest share of files that are no readable images; more is refused."""
    image_column: str = "image"
    """parquet: where the pictures are, as the Hugging Face layout has them."""
    label_column: str = "label"
    """parquet: where the classes are."""
    count: int = 512
    """generated: training images; half as many test images."""
    classes: int = 10
    """generated: classes."""

    def __post_init__(self) -> None:
        if self.path is None and self.name in NEED_PATH:
            raise refuse("data.path", None, f"the folder to read {self.name} from", "give data.path=...")
        if self.val < 0 or (self.val > 1 and self.val != int(self.val)):
            raise refuse("data.val", self.val, "a share from 0 to below 1, or a whole number of images")
        for field, least in (("size", 4), ("limit", 1), ("count", 1), ("classes", 2)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise refuse(f"data.{field}", value, f"a whole number of at least {least}")
        if not 0 <= self.max_bad <= 1:
            raise refuse("data.max_bad", self.max_bad, "a share from 0 to 1")
        if (self.mean is None) != (self.std is None):
            raise refuse("data.mean", self.mean, "given together with data.std, or not at all")
        if self.std is not None and min(self.std) <= 0:
            raise refuse("data.std", self.std, "numbers above 0")

    def load(self) -> Splits:
        from rayd import sources

        parts = sources.load(self)
        train, val = self._carve(parts["train"])
        given = {"mean": list(self.mean), "std": list(self.std)} if self.mean and self.std else None
        channels = train.spec.shape[0]
        if given and {len(given["mean"]), len(given["std"])} != {channels}:
            raise refuse("data.mean", self.mean, f"one number for each of the {channels} channels, as in data.std")
        marked = [replace(part, manifest={**part.manifest, "given": given}) for part in (train, val, parts["test"])]
        return Splits(*marked)

    def _carve(self, images: Images) -> tuple[Images, Images]:
        """Training and validation images."""
        n = len(images)
        n_val = int(self.val) if self.val >= 1 else round(self.val * min(n, self.limit or n))
        n_train = min(n - n_val, self.limit or n)
        if n_train < 1:
            raise refuse("data.val", self.val, f"fewer than the {n} training images")
        if self.split == "next":
            return images.select(torch.arange(n_train)), images.select(torch.arange(n_train, n_train + n_val))
        order = images.manifest.get("order")
        if order == [self.seed, n_val]:
            return images.select(torch.arange(n_val, n_val + n_train)), images.select(torch.arange(n_val))
        drawn = seeded_order(n, self.seed)
        return images.select(drawn[n_val : n_val + n_train].sort().values), images.select(drawn[:n_val].sort().values)


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
