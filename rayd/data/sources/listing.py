"""How a dataset is described before it is decoded.

Every format becomes a `Source`: classes, and for each part (train, test) a `Listing` of named items in a fixed order.
A format that does not recognise a folder returns None, so a dataset can be found in any of the layouts people have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch

from rayd.data.config import DataConfig
from rayd.data.images import Pixels
from rayd.data.sources.decode import Payload
from rayd.errors import refuse
from rayd.seeds import generator

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PARTS = {"train": ("train", "training"), "test": ("test", "val", "validation", "valid")}
TEST_SHARE = 0.2
"""Of a set that has no test part: drawn once, the same for every seed."""
MOST_CLASSES = 10**6
"""A label above it is a mistake, and would be a list of so many names."""


class Files(Protocol):
    """What a format needs of a folder, here or behind a URI."""

    where: str

    def names(self, prefix: str = "") -> list[str]:
        """Names of all files below, relative, sorted."""
        ...

    def read(self, name: str) -> bytes: ...
    def open(self, name: str) -> BinaryIO: ...
    def stamp(self, name: str) -> list[Any]:
        """Name, size and time: what changes when the file does."""
        ...


@dataclass(frozen=True)
class Listing:
    """Named and labelled items in a fixed order; `fetch(start, stop)` streams what they hold."""

    names: Sequence[str]
    labels: Sequence[int]
    fetch: Callable[[int, int], Iterator[Payload]]
    skipped: list[dict[str, str]] = field(default_factory=list)
    """What the listing already knows to be no labelled picture."""
    pixels: Pixels | None = None
    """The items themselves, where they lie in mapped files already."""
    histogram_CV: np.ndarray[Any, Any] | None = None
    content: str = ""
    """Of mapped items: the hash that names them."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Sequence[int]) -> Listing:
        """These items; ascending, so that streaming stays in order."""

        def fetch(start: int, stop: int) -> Iterator[Payload]:
            wanted = index[start:stop]
            if not wanted:
                return
            keep, first, last = set(wanted), wanted[0], wanted[-1] + 1
            items = zip(range(first, last), self.fetch(first, last), strict=True)
            yield from (payload for i, payload in items if i in keep)

        names, labels = [self.names[i] for i in index], [self.labels[i] for i in index]
        if self.pixels is None:
            return Listing(names, labels, fetch, self.skipped)
        content = hashlib.sha256(f"{self.content} {index}".encode()).hexdigest()
        return Listing(names, labels, fetch, self.skipped, self.pixels.select(torch.tensor(index)), content=content)


@dataclass(frozen=True)
class Contents:
    classes: tuple[str, ...]
    parts: dict[str, Listing]


@dataclass(frozen=True)
class Source:
    """A dataset that was found. Its contents are opened only if the cache does not hold them yet."""

    identity: list[Any]
    """What changes when the dataset does: names, sizes and times of its files."""
    contents: Callable[[], Contents]
    channels: int = 3
    where: str = ""
    in_place: bool = False
    """Read as it is, without a decoded copy in the cache."""


Format = Callable[[Files, DataConfig], Source | None]


def split_test(parts: dict[str, Listing]) -> dict[str, Listing]:
    """A set without a test part gives up a share of its training images, the same ones always."""
    if "test" in parts:
        return parts
    whole = parts["train"]
    drawn = torch.randperm(len(whole), generator=generator("test split", len(whole))).tolist()
    cut = round(TEST_SHARE * len(whole))
    return {"train": whole.take(sorted(drawn[cut:])), "test": whole.take(sorted(drawn[:cut]))}


class Numbered(Sequence[str]):
    """Row numbers as names, without holding a million strings."""

    def __init__(self, stem: str, n: int) -> None:
        self.stem, self.n = stem, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: Any) -> Any:
        return [self[j] for j in range(*i.indices(self.n))] if isinstance(i, slice) else f"{self.stem}:{i}"


def label_index(
    classes: Sequence[str] | None, labels: list[Any], config: DataConfig
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Class names, and the class number of every label that occurs (a number or a name)."""
    stranger = next((label for label in labels if not isinstance(label, int | str)), None)
    if stranger is not None or not labels:
        raise refuse("data.label_column", config.label_column, f"a column of numbers or names, not {str(stranger)[:40]}")
    seen = set(labels)
    if classes is None and config.name == "cifar10":
        classes = CIFAR10
    if all(isinstance(label, int) for label in seen):
        names = tuple(classes or map(str, range(min(max(seen) + 1, MOST_CLASSES))))
        if min(seen) < 0 or max(seen) >= len(names):
            allowed = f"a column of labels from 0 to {len(names) - 1}, not {min(seen)} to {max(seen)}"
            raise refuse("data.label_column", config.label_column, allowed)
        return names, {label: label for label in seen}
    names = tuple(classes or sorted({str(label) for label in seen}))
    number = {name: c for c, name in enumerate(names)}
    strangers = sorted({str(label) for label in seen} - set(names))
    if strangers:
        raise refuse(
            "data.label_column", config.label_column, f"a column of the {len(names)} classes, not {strangers[0]}"
        )
    return names, {label: number[str(label)] for label in seen}


def choose(names: Sequence[str], begins: Callable[[str, str], bool]) -> dict[str, list[str]]:
    """Files of each part: those of the first of the part's words that any file answers to."""
    return {
        part: next((hit for word in words if (hit := [n for n in names if begins(n, word)])), [])
        for part, words in PARTS.items()
    }
