"""Images of one's own: from tensors, a folder, a `datasets` Dataset or a torch Dataset, and as the data of a run.

A run reads them from disk, so that a later command, a worker or another machine finds them: `written` leaves them in the
run's folder, in the layout of jobs.prepare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from rayd.data import images
from rayd.data.config import DataConfig
from rayd.data.images import Pixels, Splits, counts
from rayd.data.load import load, split
from rayd.data.prepare import Preparation
from rayd.data.sources.decode import Array, Shape, decode
from rayd.data.sources.listing import Contents, Listing, Numbered, Source, split_test
from rayd.errors import refuse

PER_SHARD = 4096


class Images(images.Images):
    """Labelled 8-bit images: what `data=` takes, alone or as (train, test)."""

    @classmethod
    def from_tensors(
        cls, images: Any, labels: Any, classes: Sequence[str] | None = None, name: str = "tensors"
    ) -> Self:
        """Tensors or arrays: uint8 [N, C, H, W] or [N, H, W], or floats from 0 to 1; class numbers or names.

        >>> import torch, rayd
        >>> images = rayd.Images.from_tensors(torch.rand(6, 3, 8, 8), [0, 1, 2, 0, 1, 2])
        >>> len(images), images.spec.shape, images.classes
        (6, (3, 8, 8), ('0', '1', '2'))
        """
        pixels = _pixels(torch.as_tensor(images))
        listed, names = _numbered(labels, classes)
        if len(listed) != len(pixels):
            raise refuse("labels", f"{len(listed)} of them", f"one for each of the {len(pixels)} images")
        labels_N = torch.tensor(listed, dtype=torch.int64)
        content = hashlib.sha256(pixels.numpy().tobytes() + labels_N.numpy().tobytes()).hexdigest()
        manifest = {"name": name, "source": name, "content": content, "counts": counts(labels_N, names), "skipped": []}
        return cls(pixels, labels_N, names, name, manifest)

    @classmethod
    def from_folder(
        cls,
        path: str,
        part: str = "train",
        size: int | None = None,
        channels: int | None = None,
        **options: Any,
    ) -> Self:
        """A part of a folder that `data=folder` reads; `options`: its other keys, such as resize.

        >>> import rayd
        >>> rayd.Images.from_folder("nowhere")
        Traceback (most recent call last):
        rayd.errors.Refused: data.path=nowhere: allowed is a folder that holds ...
        """
        plain = {"name": "folder", "path": path, "size": size, "channels": channels, "val": 0.0, **options}
        splits = load(DataConfig.from_plain(plain))
        if part not in ("train", "val", "test"):
            raise refuse("part", part, "train | val | test")
        return cls._of(getattr(splits, part))

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        image: str = "image",
        label: str = "label",
        size: int | None = None,
        channels: int | None = None,
    ) -> Self:
        """One split of the `datasets` library; the names of a ClassLabel are kept.

        >>> import datasets, numpy, rayd
        >>> rows = {"image": [numpy.zeros((8, 8), "uint8")] * 4, "label": ["cat", "dog", "cat", "dog"]}
        >>> rayd.Images.from_dataset(datasets.Dataset.from_dict(rows)).classes
        ('cat', 'dog')
        """
        columns = list(getattr(dataset, "column_names", None) or ())
        if not columns or isinstance(getattr(dataset, "column_names", None), Mapping):
            raise refuse("dataset", type(dataset).__name__, "one split of it", 'give dataset["train"]')
        for key, column in (("image", image), ("label", label)):
            if column not in columns:
                raise refuse(key, column, " | ".join(columns))
        names = getattr(dataset.features[label], "names", None) if getattr(dataset, "features", None) else None
        rows = ((row[image], row[label]) for row in dataset)
        return cls._decoded(rows, names, size, channels, getattr(dataset, "builder_name", None) or "dataset")

    @classmethod
    def from_torch(
        cls,
        dataset: Any,
        classes: Sequence[str] | None = None,
        size: int | None = None,
        channels: int | None = None,
    ) -> Self:
        """A torch or torchvision Dataset of (image, label); images are PIL's, arrays or tensors.

        >>> import rayd, torch
        >>> pairs = torch.utils.data.TensorDataset(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
        >>> rayd.Images.from_torch(pairs, classes=["left", "right"]).manifest["counts"]
        {'left': 2, 'right': 2}
        """
        names = classes or getattr(dataset, "classes", None)
        rows = (dataset[i] for i in range(len(dataset)))
        return cls._decoded(rows, names, size, channels, type(dataset).__name__)

    @classmethod
    def _decoded(
        cls, rows: Iterable[Any], names: Sequence[str] | None, size: int | None, channels: int | None, name: str
    ) -> Self:
        """Decoded as the pictures of a folder are; the first image says how many channels, where nobody does."""
        pixels, labels = list[Array](), list[Any]()
        for i, (picture, label) in enumerate(rows):
            array = _array(picture)
            channels = channels or len(array)
            decoded = decode(array, Shape(size, channels, "squash"))
            if isinstance(decoded, str):
                raise refuse(f"image {i}", decoded, "a picture")
            if decoded.shape[1] != decoded.shape[2] or (pixels and decoded.shape != pixels[0].shape):
                raise refuse("size", size, f"a side in pixels: image {i} is {decoded.shape[2]}x{decoded.shape[1]}")
            pixels.append(decoded)
            labels.append(label.item() if hasattr(label, "item") else label)
        if not pixels:
            raise refuse("dataset", "empty", "at least one image")
        return cls.from_tensors(np.stack(pixels), labels, names, name)

    @classmethod
    def _of(cls, other: images.Images) -> Self:
        return cls(other.pixels_NCHW, other.labels_N, other.classes, other.name, other.manifest)


def _pixels(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W], square, of 1 or 3 channels."""
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3] or not len(images):
        allowed = "[N, C, H, W] with 1 or 3 channels and equal sides, or [N, H, W]"
        raise refuse("images", list(images.shape), allowed, "permute(0, 3, 1, 2) puts channels first")
    if images.is_floating_point():
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise refuse("images", f"floats from {low:g} to {high:g}", "floats from 0 to 1, or uint8 from 0 to 255")
        images = (images * 255).round()
    elif images.dtype != torch.uint8:
        raise refuse("images", images.dtype, "torch.uint8, or floats from 0 to 1")
    return images.to("cpu", torch.uint8).contiguous()


def _numbered(labels: Any, classes: Sequence[str] | None) -> tuple[list[int], tuple[str, ...]]:
    """Class numbers, and the names of the classes: those given, those that occur, or the numbers."""
    listed = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if any(isinstance(label, str) for label in listed):
        names = tuple(classes) if classes else tuple(sorted(set(listed)))
        number = {name: c for c, name in enumerate(names)}
        unknown = next((label for label in listed if label not in number), None)
        if unknown is not None:
            raise refuse("labels", unknown, " | ".join(names))
        return [number[label] for label in listed], names
    wrong = next((label for label in listed if not isinstance(label, int) or isinstance(label, bool)), None)
    if wrong is not None or min(listed, default=0) < 0:
        raise refuse("labels", min(listed) if wrong is None else wrong, "class numbers from 0, or class names")
    names = tuple(classes) if classes else tuple(map(str, range(max(listed, default=0) + 1)))
    if len(names) < 2 or max(listed, default=0) >= len(names):
        raise refuse("classes", len(names), f"at least two names, and one for label {max(listed, default=0)}")
    return listed, names


def _array(picture: Any) -> Array:
    """uint8 [C, H, W] of a picture as data sets hand them out."""
    if isinstance(picture, Tensor):
        return np.asarray(_pixels_of_one(picture))
    if hasattr(picture, "convert"):
        grey = picture.mode in ("1", "L", "LA") or picture.mode.startswith("I")
        picture = decode_mode(picture, grey)
    array = np.asarray(picture)
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[-1] in (1, 3):
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or len(array) not in (1, 3):
        raise refuse("image", list(array.shape), "[H, W], [H, W, 3] or [3, H, W]")
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > (1 if array.dtype.kind == "f" else 255):
            raise refuse("image", f"{array.dtype} from {low:g} to {high:g}", "uint8, or floats from 0 to 1")
        array = (array * 255).round() if array.dtype.kind == "f" else array
    return np.ascontiguousarray(array.astype(np.uint8))


def decode_mode(picture: Any, grey: bool) -> Any:
    """Of a PIL picture, in 8 bits: one channel where it is grey, else three."""
    if picture.mode.startswith("I;16"):
        return (np.asarray(picture) >> 8).astype(np.uint8)
    return picture.convert("L" if grey else "RGB")


def _pixels_of_one(picture: Tensor) -> Tensor:
    return _pixels(picture[None] if picture.ndim == 3 else picture[None, None])[0]


# ---- as the data of a run ------------------------------------------------------------------------------------------


def splits_of(train: images.Images, test: images.Images | None = None, **options: Any) -> Splits:
    """In memory, as a run would split them. `options`: keys of `data`."""
    parts = {"train": train} | ({"test": test} if test is not None else {})
    listings = split_test({part: _listing(part, one) for part, one in parts.items()})
    rows = {part: torch.tensor(listing.labels) for part, listing in listings.items()}
    whole = {
        part: images.Images(
            listing.pixels if listing.pixels is not None else train.pixels_NCHW, rows[part], train.classes, train.name,
            train.manifest | {"content": listing.content, "counts": counts(rows[part], train.classes)},
        )
        for part, listing in listings.items()
    }  # fmt: skip
    return split(DataConfig(name="prepared", path="", **options), whole)


def written(to: str, train: images.Images, test: images.Images | None = None) -> str:
    """The images as prepared shards at `to`, written once; other images there are refused."""
    parts = {"train": train} | ({"test": test} if test is not None else {})
    listings = {part: _listing(part, one) for part, one in parts.items()}
    for part, one in parts.items():
        if one.spec != train.spec or one.classes != train.classes:
            raise refuse(f"data {part}", f"{one.spec} {one.classes[:3]}", f"{train.spec} and the same classes")
    shape, identity = train.spec.shape, [[part, listing.content] for part, listing in listings.items()]
    source = Source(identity, lambda: Contents(train.classes, split_test(listings)), shape[0], train.name)
    work = Preparation(DataConfig(name="prepared", path=to, size=shape[-1]), to, PER_SHARD, 1, source)
    work.agree()
    for unit in work.pending():
        work.write(unit)
    if not work.store.exists("manifest.json"):
        work.finish()
    return to


def _listing(part: str, one: images.Images) -> Listing:
    pixels = one.pixels_NCHW

    def fetch(start: int, stop: int) -> Iterator[Array]:
        for first in range(start, stop, 256):
            yield from pixels[first : min(first + 256, stop)].numpy()

    mapped = pixels if isinstance(pixels, Pixels) else Pixels([pixels])
    content = str(one.manifest["content"])
    return Listing(Numbered(part, len(one)), one.labels_N.tolist(), fetch, pixels=mapped, content=content)
