"""Datasets out of other packages or a seed: scikit-learn's digits, torchvision's downloads, generated images."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import torch

from rayd.data.config import DataConfig
from rayd.data.sources.decode import Array
from rayd.data.sources.listing import Contents, Files, Listing, Numbered, Source, split_test
from rayd.errors import refuse
from rayd.seeds import generator


def need(package: str, extra: str, config: DataConfig) -> None:
    """Refuse a dataset whose reader is not installed, before anything is imported."""
    if find_spec(package) is None:
        raise refuse("data.name", config.name, "a dataset whose reader is installed", f"pip install 'rayd[{extra}]'")


def digits(files: Files, config: DataConfig) -> Source | None:
    """scikit-learn's 1,797 handwritten digits of 8x8; a fifth is the test set."""
    need("sklearn", "digits", config)

    def contents() -> Contents:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
        labels = [int(label) for label in digits.target]
        whole = Listing(Numbered("digit", len(labels)), labels, lambda start, stop: iter(pixels[start:stop]))
        return Contents(tuple(map(str, range(10))), split_test({"train": whole}))

    return Source([version("scikit-learn")], contents, 1, "scikit-learn")


def generated(files: Files, config: DataConfig) -> Source | None:
    """Each class a smooth pattern of its own under noise: learnable, of any size, out of the seed alone."""
    side, channels = config.size or 32, config.channels or 3
    means = torch.rand(config.classes, channels, 4, 4, generator=generator(config.seed, "generated"))
    smooth = torch.nn.functional.interpolate(means, (side, side), mode="bilinear", align_corners=False)
    smooth_KCHW = smooth.mul(160).add(16).to(torch.uint8).numpy()

    def part(name: str, n: int) -> Listing:
        def fetch(start: int, stop: int) -> Iterator[Array]:
            for i in range(start, stop):
                rng = generator(config.seed, "generated", name, i)
                noise = torch.randint(0, 80, (channels, side, side), generator=rng, dtype=torch.uint8)
                yield smooth_KCHW[i % config.classes] + noise.numpy()

        return Listing(Numbered(name, n), [i % config.classes for i in range(n)], fetch)

    parts = {"train": part("train", config.count), "test": part("test", max(config.count // 2, 1))}
    classes = tuple(f"class{c}" for c in range(config.classes))
    identity = [config.seed, config.count, config.classes, side, channels]
    return Source(identity, lambda: Contents(classes, parts), channels, "generated", in_place=True)


def torchvision_set(files: Files, config: DataConfig) -> Source | None:
    """What torchvision downloaded: CIFAR, SVHN, MNIST, Fashion-MNIST."""
    cls, mark, channels = TORCHVISION[config.name]
    names = [name for name in files.names() if name.startswith(mark)]
    if not names:
        return None
    need("torchvision", "vision", config)

    def contents() -> Contents:
        from torchvision import datasets

        kind, parts, classes = getattr(datasets, cls), {}, tuple(map(str, range(10)))
        for part in ("train", "test"):
            which = {"split": part} if config.name == "svhn" else {"train": part == "train"}
            try:
                dataset = kind(files.where, download=False, **which)
            except RuntimeError as error:
                raise refuse("data.path", files.where, f"all files of {config.name}, whole", str(error)) from error
            pixels = np.asarray(dataset.data)
            if pixels.shape[-1] == 3:
                pixels = pixels.transpose(0, 3, 1, 2)
            labels = [int(label) for label in (dataset.labels if config.name == "svhn" else dataset.targets)]
            classes = tuple(getattr(dataset, "classes", classes))
            parts[part] = _array(f"{config.name}-{part}", pixels[:, None] if pixels.ndim == 3 else pixels, labels)
        return Contents(classes, parts)

    return Source([files.stamp(name) for name in names], contents, channels, files.where)


def _array(name: str, pixels_NCHW: Array, labels: list[int]) -> Listing:
    return Listing(Numbered(name, len(labels)), labels, lambda start, stop: iter(pixels_NCHW[start:stop]))


TORCHVISION = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py", 3),
    "cifar100": ("CIFAR100", "cifar-100-python", 3),
    "svhn": ("SVHN", "train_32x32.mat", 3),
    "mnist": ("MNIST", "MNIST/raw", 1),
    "fashion": ("FashionMNIST", "FashionMNIST/raw", 1),
}
