"""How a dataset is described before it is decoded.

Every format becomes a `Source`: classes, and for each part (train, test) a `Listing` of named items in a fixed order.
A format that does not recognise a folder returns None, so a dataset can be found in any of the layouts people have.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch

from rayd.data.config import DataConfig
from rayd.data.images import Pixels
from rayd.data.sources.decode import LARGEST, Payload, in_threads
from rayd.errors import refuse
from rayd.seeds import generator

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PARTS = {"train": ("train", "training"), "test": ("test", "val", "validation", "valid")}
TEST_SHARE = 0.2
"""Of a set that has no test part: drawn once, the same for every seed."""
READERS = 8
"""Threads that read picture files."""
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
    layout: str = ""
    """How it lies there, in words."""


Format = Callable[[Files, DataConfig], Source | None]


def split_test(parts: dict[str, Listing], by_class: bool = False) -> dict[str, Listing]:
    """A set without a test part gives up a share of its training images, the same ones always."""
    if "test" in parts:
        return parts
    whole = parts["train"]
    drawn = torch.randperm(len(whole), generator=generator("test split", len(whole)))
    labels_N = torch.tensor(whole.labels, dtype=torch.int64)
    if by_class:
        test, train = share_of_each(drawn, labels_N, TEST_SHARE, least=1)
    else:
        cut = round(TEST_SHARE * len(whole))
        test, train = with_every_class(drawn[:cut], drawn[cut:], labels_N)
    return {"train": whole.take(sorted(train.tolist())), "test": whole.take(sorted(test.tolist()))}


def share_of_each(
    order_N: torch.Tensor, labels_N: torch.Tensor, share: float, least: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A drawn order in two: a share of every class, `least` or more where it has two images, and the rest."""
    chosen = torch.zeros(len(order_N), dtype=torch.bool)
    labels_in_order = labels_N[order_N]
    for c in labels_in_order.unique().tolist():
        places = (labels_in_order == c).nonzero().flatten()
        chosen[places[: min(max(round(share * len(places)), least), len(places) - 1)]] = True
    return order_N[chosen], order_N[~chosen]


def with_every_class(
    head: torch.Tensor, rest: torch.Tensor, labels_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A drawn split whose rest keeps an image of every class: the first one of a class that it would lose."""
    lost = sorted(set(labels_N[head].tolist()) - set(labels_N[rest].tolist()))
    back = [int((labels_N[head] == c).nonzero()[0]) for c in lost]
    if not back:
        return head, rest
    stays = torch.ones(len(head), dtype=torch.bool)
    stays[back] = False
    return head[stays], torch.cat([rest, head[back]])


def by_files(files: Files, names: Sequence[str], labels: Sequence[int]) -> Listing:
    """One file a picture, read some ahead: a network disk answers many questions at once."""

    def read(name: str) -> bytes:
        return files.read(name) if files.stamp(name)[1] <= LARGEST else b""

    return Listing(names, labels, lambda start, stop: in_threads(read, names[start:stop], READERS))


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
    others = [label for label in labels if not isinstance(label, int | str)]
    if others or not labels:
        raise refuse("data.label_column", config.label_column, f"a column of numbers or names, not {others[:1]}")
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


def named_classes(labels: Sequence[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The labels that occur as classes: numbers in their order, else texts in theirs."""
    seen = set(labels)
    numbers = all(re.fullmatch(r"-?[0-9]{1,9}", label) for label in seen)
    classes = tuple(sorted(seen, key=int) if numbers else sorted(seen))
    return classes, {label: c for c, label in enumerate(classes)}


def word_in(name: str, word: str) -> bool:
    """Whether a file's path has the word: train-000.tar, set/train/0.tar, labels_test.csv."""
    return re.search(rf"(^|[/_.-]){word}([/_.-]|\d)", name.lower()) is not None


def choose(names: Sequence[str], begins: Callable[[str, str], bool]) -> dict[str, list[str]]:
    """Files of each part: those of the first of the part's words that any file answers to."""
    return {
        part: next((hit for word in words if (hit := [n for n in names if begins(n, word)])), [])
        for part, words in PARTS.items()
    }
