"""Images and labels as tensors: .npz, .npy and .safetensors. Nothing is unpickled, so .pt and .pkl are not read.

Tensors are told apart by the words in their names: x_train.npy, train_images, test_labels, images and labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np

from rayd.data.config import DataConfig
from rayd.data.sources.decode import Array
from rayd.data.sources.listing import (
    PARTS,
    Contents,
    Files,
    Listing,
    Numbered,
    Source,
    choose,
    named_classes,
    split_test,
)
from rayd.data.sources.places import Folder
from rayd.errors import refuse
from rayd.store.arrays import map_npy, npy, npz, npz_names

ENDINGS = (".npz", ".npy", ".safetensors")
IMAGES = frozenset({"images", "image", "x", "data", "pixels"})
LABELS = frozenset({"labels", "label", "y", "targets", "target"})
BLOCK = 1024
"""Images looked at a time."""

Tensor = Callable[[], Array]
T = TypeVar("T")


def tensors(files: Files, config: DataConfig) -> Source | None:
    used = [name for name in files.names() if name.endswith(ENDINGS)]
    if not used:
        return None
    found = {name: tensor for file in used for name, tensor in _tensors(files, file).items()}
    pairs = _pairs(found)
    if "train" not in pairs:
        return None

    def contents() -> Contents:
        images = {part: _pixels(name, found[name]()) for part, (name, _) in pairs.items()}
        labels = {part: _labels(name, found[name]()) for part, (_, name) in pairs.items()}
        for part, (name, beside) in pairs.items():
            if len(images[part]) != len(labels[part]):
                raise refuse(beside, len(labels[part]), f"as many labels as {name} has images, {len(images[part])}")
        classes, number = named_classes([label for column in labels.values() for label in column])
        parts = {
            part: Listing(
                Numbered(pairs[part][0], len(labels[part])),
                [number[label] for label in labels[part]],
                _rows(images[part]),
            )
            for part in pairs
        }
        return Contents(classes, split_test(parts, config.name == "folder"))

    stamps = [files.stamp(name) for name in used]
    return Source(stamps, contents, 3, files.where, layout=f"tensors in {', '.join(used)}")


def _tensors(files: Files, name: str) -> dict[str, Tensor]:
    """The tensors of a file by name, opened when they are asked for."""
    if name.endswith(".npz"):
        keys = _whole(name, lambda: npz_names(files.open(name)))
        return {f"{name}:{key}": partial(_whole, name, partial(_member, files, name, key)) for key in keys}
    if name.endswith(".npy"):
        read = partial(map_npy, files.path / name) if isinstance(files, Folder) else lambda: npy(files.read(name))
        return {name: partial(_whole, name, read)}
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(files.read(name))
    except (SafetensorError, KeyError) as error:
        raise refuse("data.path", name, f"a whole safetensors file ({error})", "save it again") from error
    return {f"{name}:{key}": partial(np.asarray, array) for key, array in arrays.items()}


def _member(files: Files, name: str, key: str) -> Array:
    return npz(files.open(name), key)


def _whole(name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except ValueError as error:
        raise refuse("data.path", name, f"whole arrays of numbers or texts ({error})", "save it again") from error


def _pairs(found: dict[str, Tensor]) -> dict[str, tuple[str, str]]:
    """For each part its images and its labels, by the words of their names."""
    words = {name: set(re.split(r"[^a-z]+", str(PurePosixPath(name)).lower())) for name in found}
    images = [name for name in found if words[name] & IMAGES and not words[name] & LABELS]
    labels = [name for name in found if words[name] & LABELS]
    of_part = {
        what: choose(names, lambda name, word: word in words[name])
        for what, names in (("images", images), ("labels", labels))
    }
    parts: dict[str, tuple[str, str]] = {}
    for part in PARTS:
        x, y = of_part["images"][part], of_part["labels"][part]
        if part == "train":
            x = x or [name for name in images if name not in of_part["images"]["test"]]
            y = y or [name for name in labels if name not in of_part["labels"]["test"]]
        if len(x) == 1 and len(y) == 1:
            parts[part] = (x[0], y[0])
    return parts


def _labels(name: str, array: Array) -> list[str]:
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iuU":
        raise refuse(name, f"{array.dtype} {array.shape}", "whole numbers or texts, one a row")
    return [str(label) for label in flat.tolist()]


def _pixels(name: str, array: Array) -> Array:
    """[N, H, W] or [N, H, W, C] or [N, C, H, W] as [N, C, H, W], a view; values 0 to 1, 0 to 255, or of 16 bits."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise refuse(name, array.shape, "[N, H, W], [N, H, W, C] or [N, C, H, W], of 1 or 3 channels")
    if array.size == 0 or array.dtype.kind not in "uifb":
        raise refuse(name, f"{array.dtype} {array.shape}", "at least one image, of numbers")
    if array.dtype in (np.uint8, np.uint16):
        return array
    low, high = _range(array)
    whole = array.dtype.kind in "iu"
    most = 65535 if whole else 255
    if not (low >= 0 and high <= most):
        raise refuse(name, f"{low:g} to {high:g}", f"pixels from 0 to 1 or 255{' or 65535' if whole else ''}",
                     "undo the normalisation before saving")  # fmt: skip
    if whole:
        return array.astype(np.uint8 if high <= 255 else np.uint16)
    scale = 255 if high <= 1 else 1
    return np.concatenate([np.round(block * scale).astype(np.uint8) for block in _blocks(array)])


def _blocks(array: Array) -> Iterator[Array]:
    return (array[start : start + BLOCK] for start in range(0, len(array), BLOCK))


def _range(array: Array) -> tuple[float, float]:
    lows, highs = zip(*((float(block.min()), float(block.max())) for block in _blocks(array)), strict=True)
    return min(lows), max(highs)


def _rows(array: Array) -> Callable[[int, int], Iterator[Array]]:
    return lambda start, stop: (np.ascontiguousarray(row) for row in array[start:stop])
