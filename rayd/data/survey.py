"""What a dataset is made of, before anything is decoded for a run: classes, counts, sizes, bad files, duplicates.

`quick_survey` reads a few hundred headers and is kept in the cache folder; `full_survey` reads every picture.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from rayd.data.builder import build, cache_folder
from rayd.data.config import DataConfig
from rayd.data.sources import formats
from rayd.data.sources.decode import Facts, Payload, Shape, decode, facts, in_threads
from rayd.data.sources.listing import Contents, Listing, Source
from rayd.errors import Refused
from rayd.machine import beat
from rayd.schema import fingerprint

RUNS, RUN = 8, 32
"""A quick survey looks at so many runs of neighbours, of so many pictures each."""
THREADS = 8
VERSION = 1
"""Of what a quick survey leaves in the cache folder."""


@dataclass(frozen=True)
class Part:
    """Training or test images."""

    counts: tuple[int, ...]
    """Listed images of each class."""
    bad: tuple[tuple[str, str], ...] = ()
    """Names of what is no labelled picture, and why."""

    @property
    def listed(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class Duplicate:
    """An image that is there more than once."""

    first: str
    again: str
    across: bool
    """Whether one is a training and one a test image."""
    agree: bool
    """Whether both have the same label."""


@dataclass(frozen=True)
class Survey:
    layout: str
    where: str
    classes: tuple[str, ...]
    parts: dict[str, Part]
    sides: tuple[tuple[int, int], ...]
    """Width and height of every picture that was looked at."""
    modes: dict[str, int]
    white: int = 0
    """The largest value of pictures of 16 bits; 0: there are none."""
    duplicates: tuple[Duplicate, ...] = ()
    whole: bool = False
    """Whether every picture was looked at."""

    @property
    def side(self) -> float:
        """Of the short side, the median."""
        return median(min(sides) for sides in self.sides)

    @property
    def aspect(self) -> float:
        """Long side by short side, the median."""
        return median(max(sides) / min(sides) for sides in self.sides)

    @property
    def same(self) -> bool:
        """Whether all pictures are squares of one size."""
        return len(set(self.sides)) == 1 and self.sides[0][0] == self.sides[0][1]

    @property
    def grey(self) -> bool:
        return bool(self.modes) and all(mode in ("1", "L", "LA", "I;16") for mode in self.modes)

    @property
    def sizes(self) -> list[int]:
        """Training images of each class that has some."""
        return [count for count in self.parts["train"].counts if count]

    @property
    def imbalance(self) -> float:
        """Training images of the largest class by those of the smallest."""
        return max(self.sizes, default=1) / min(self.sizes, default=1)


def quick_survey(config: DataConfig) -> Survey:
    """A few pictures of the training part; the counts are those of the whole listing."""
    source = formats.find(config)
    columns = [config.image_column, config.label_column]
    name = fingerprint([VERSION, config.name, columns, source.where, source.identity])[:24]
    path = cache_folder() / f"survey-{name}.json"

    def fill(draft: Path) -> None:
        contents = source.contents()
        seen = [facts(payload) for payload in _some(contents.parts["train"])]
        draft.write_text(json.dumps(dataclasses.asdict(_survey(source, contents, seen))))

    build(path, Path.exists, fill)
    plain = json.loads(path.read_text())
    parts = {part: Part(tuple(one["counts"]), tuple(map(tuple, one["bad"]))) for part, one in plain["parts"].items()}
    sides = tuple((width, height) for width, height in plain["sides"])
    return Survey(**plain | {"classes": tuple(plain["classes"]), "parts": parts, "sides": sides, "duplicates": ()})


def _some(listing: Listing) -> Iterator[Payload]:
    """Pictures out of evenly spread places."""
    n = len(listing)
    if n <= RUNS * RUN:
        yield from listing.fetch(0, n)
        return
    for start in (i * (n - RUN) // (RUNS - 1) for i in range(RUNS)):
        yield from listing.fetch(start, start + RUN)


def full_survey(config: DataConfig) -> Survey:
    """Every picture, decoded as the config says: what cannot be read, and what is there twice."""
    source = formats.find(config)
    contents = source.contents()
    shape = Shape(config.size, config.channels or source.channels, config.resize, config.bits)
    seen: list[Facts | str] = []
    found = _Duplicates()
    bad: dict[str, list[tuple[str, str]]] = {}
    for part, listing in contents.parts.items():
        bad[part] = [(item["name"], item["why"]) for item in listing.skipped]
        looked = in_threads(partial(_look, shape=shape), listing.fetch(0, len(listing)), THREADS)
        for i, (picture, digest) in enumerate(looked):
            beat(f"reading, image {i}")
            seen.append(picture)
            if isinstance(picture, str):
                bad[part].append((listing.names[i], picture))
            else:
                found.add(digest, part, listing.names[i], listing.labels[i])
    return _survey(source, contents, seen, bad, tuple(found.duplicates), whole=True)


def _look(payload: Payload, shape: Shape) -> tuple[Facts | str, bytes]:
    """A picture as it is, and the hash of the pixels that it becomes."""
    pixels = decode(payload, shape)
    if isinstance(pixels, str):
        return pixels, b""
    head = str(pixels.shape).encode()
    return facts(payload), hashlib.blake2b(head + pixels.tobytes(), digest_size=16).digest()


@dataclass
class _Duplicates:
    """The first image of every content, and the later ones of the same."""

    first: dict[bytes, tuple[str, str, int]] = field(default_factory=dict)
    duplicates: list[Duplicate] = field(default_factory=list)

    def add(self, digest: bytes, part: str, name: str, label: int) -> None:
        before = self.first.setdefault(digest, (part, name, label))
        if before[:2] != (part, name):
            self.duplicates.append(Duplicate(before[1], name, before[0] != part, before[2] == label))


def _survey(
    source: Source,
    contents: Contents,
    seen: Sequence[Facts | str],
    bad: dict[str, list[tuple[str, str]]] | None = None,
    duplicates: tuple[Duplicate, ...] = (),
    whole: bool = False,
) -> Survey:
    pictures = [one for one in seen if isinstance(one, Facts)]
    parts = {}
    for part, listing in contents.parts.items():
        count = Counter(listing.labels)
        known = [(item["name"], item["why"]) for item in listing.skipped]
        counts = tuple(count[c] for c in range(len(contents.classes)))
        parts[part] = Part(counts, tuple(bad[part] if bad else known))
    if not pictures:
        why = next((one for one in seen if isinstance(one, str)), "there are none")
        raise Refused(f"data.path={source.where}: allowed is a folder with pictures that can be read; {why}")
    return Survey(
        source.layout or "its own layout",
        source.where,
        contents.classes,
        parts,
        tuple((one.width, one.height) for one in pictures),
        dict(Counter(one.mode for one in pictures)),
        max(one.white for one in pictures),
        duplicates,
        whole,
    )
