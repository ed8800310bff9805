"""How a dataset is described before it is decoded.

Every format becomes a `Source`: classes, and for each part (train, test) a `Listing` of named items in a fixed order.
A format that does not recognise a folder returns None, so a dataset can be found in any of the layouts people have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, Protocol

import torch

from rayd.data.config import DataConfig
from rayd.data.sources.decode import Payload
from rayd.errors import refuse
from rayd.seeds import generator

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PARTS = {"train": ("train", "training"), "test": ("test", "val", "validation", "valid")}
TEST_SHARE = 0.2
"""Of a set that has no test part: drawn once, the same for every seed."""


class Files(Protocol):
    """What a format needs of a folder, here or behind a URI."""

    where: str

    def names(self, prefix: str = "") -> list[str]:
        """Names of all files below, relative, sorted."""
        ...

    def read(self, name: str) -> bytes: ...
    def open(self, name: str) -> BinaryIO: ...
    def stamp(self, name: str) -> list[Any]:
        """What changes when the file does."""
        ...


@dataclass(frozen=True)
class Listing:
    """Named and labelled items in a fixed order; `fetch(start, stop)` streams what they hold."""

    names: Sequence[str]
    labels: Sequence[int]
    fetch: Callable[[int, int], Iterator[Payload]]
    skipped: list[dict[str, str]] = field(default_factory=list)
    """What the listing already knows to be no labelled picture."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Sequence[int]) -> Listing:
        """These items; ascending, so that streaming stays in order."""

        def fetch(start: int, stop: int) -> Iterator[Payload]:
            wanted = index[start:stop]
            if not wanted:
                return
            keep, first, last = set(wanted), wanted[0], wanted[-1] + 1
            yield from (one for i, one in zip(range(first, last), self.fetch(first, last), strict=True) if i in keep)

        return Listing([self.names[i] for i in index], [self.labels[i] for i in index], fetch, self.skipped)


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
    order: list[int] | None = None
    """Rows lie in the order of a split already: [seed, validation images first]."""


Format = Callable[[Files, DataConfig], Source | None]


def split_test(parts: dict[str, Listing]) -> dict[str, Listing]:
    """A set without a test part gives up a share of its training images, the same ones always."""
    if "test" in parts:
        return parts
    whole = parts["train"]
    drawn = torch.randperm(len(whole), generator=generator("test split", len(whole))).tolist()
    cut = round(TEST_SHARE * len(whole))
    return {"train": whole.take(sorted(drawn[cut:])), "test": whole.take(sorted(drawn[:cut]))}


def by_files(files: Files, names: Sequence[str], labels: Sequence[int]) -> Listing:
    return Listing(names, labels, lambda start, stop: (partial(files.read, name) for name in names[start:stop]))


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
    seen = sorted(set(labels))
    if classes is None and config.name == "cifar10":
        classes = CIFAR10
    if all(isinstance(label, int) for label in seen):
        names = tuple(classes or map(str, range(seen[-1] + 1)))
        if seen[0] < 0 or seen[-1] >= len(names):
            raise refuse(
                "data.label_column",
                config.label_column,
                f"a column of labels from 0 to {len(names) - 1}, not {seen[0]} to {seen[-1]}",
            )
        return names, {label: label for label in seen}
    names = tuple(classes or map(str, seen))
    return names, {label: names.index(str(label)) for label in seen}


def choose(names: Sequence[str], begins: Callable[[str, str], bool]) -> dict[str, list[str]]:
    """Files of each part: those of the first of the part's words that any file answers to."""
    return {
        part: next((hit for word in words if (hit := [n for n in names if begins(n, word)])), [])
        for part, words in PARTS.items()
    }
