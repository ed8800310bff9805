"""A dataset of any format and place, decoded once into fixed-size uint8 shards that engines map.

A shard is a fixed slice of the sorted listing, so whoever writes it, and however often, its bytes are the same:

    TO/plan.json          what determines the bytes; another plan is refused
    TO/train-00003.npy    uint8 [rows, C, H, W] of the listing's fourth slice, without what is no picture
    TO/train-00003.json   its labels, hash, histogram and skipped files: written last, it says that the shard is whole
    TO/manifest.json      counts, classes, statistics, content hash: written last of all

`prepare` writes them one after another, fleet/prepare.py in parallel.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rayd.data.config import DataConfig
from rayd.data.images import counts, statistics_of
from rayd.data.load import Sink, decoded, too_bad
from rayd.data.sources import formats
from rayd.data.sources.decode import Shape
from rayd.data.sources.listing import Source
from rayd.data.sources.prepared import PREPARED
from rayd.errors import Failed, refuse
from rayd.store import Store

PLAN, MANIFEST = "plan.json", "manifest.json"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What jobs.prepare takes beside the data."""

    to: str | None = None
    """Folder or URI for the shards."""
    per_shard: int = 4096
    """Images of one shard."""

    def __post_init__(self) -> None:
        if self.per_shard < 1:
            raise refuse("per_shard", self.per_shard, "a whole number of at least 1")


@dataclass(frozen=True)
class ImageShard:
    """One shard's work: a part and a slice of its listing."""

    part: str
    number: int
    start: int
    stop: int

    @property
    def stem(self) -> str:
        return f"{self.part}-{self.number:05d}"


@dataclass(frozen=True)
class Wrote:
    """One shard that was written."""

    part: str
    number: int
    rows: int
    skipped: int
    seconds: float


class Preparation:
    """A dataset that is being prepared: the list of shards, the writing of one, and the manifest of all."""

    def __init__(
        self, config: DataConfig, to: str, per_shard: int, threads: int | None = None, source: Source | None = None
    ) -> None:
        """`source`: the images, where they are in memory already."""
        if config.name == "prepared" and source is None:
            raise refuse("data.name", config.name, "a dataset that is not prepared yet")
        if config.limit is not None:
            raise refuse("data.limit", config.limit, "null, since all are prepared", "set a limit where they are read")
        self.config, self.per_shard, self.threads, self.store = config, per_shard, threads, Store(to)
        self.source = source or formats.find(config)
        self.contents = self.source.contents()
        self.shape = Shape(self._size(), config.channels or self.source.channels, config.resize, config.bits)

    def _size(self) -> int:
        if self.config.size is not None:
            return self.config.size
        first = next(self.contents.parts["train"].fetch(0, 1), None)
        if isinstance(first, np.ndarray) and first.shape[-1] == first.shape[-2]:
            return int(first.shape[-1])
        raise refuse("data.size", None, "a side in pixels", "give data.size=...")

    def units(self) -> list[ImageShard]:
        """All shards in order."""
        step = self.per_shard
        return [
            ImageShard(part, start // step, start, min(start + step, len(listing)))
            for part, listing in self.contents.parts.items()
            for start in range(0, len(listing), step)
        ]

    def agree(self) -> None:
        """Leave the plan in the folder, or refuse a folder that holds shards of another plan."""
        identity = hashlib.sha256(json.dumps(self.source.identity).encode()).hexdigest()
        columns = [self.config.image_column, self.config.label_column]
        plan = {
            "data": self.config.name,
            "source": identity,
            "size": self.shape.size,
            "channels": self.shape.channels,
            "resize": self.shape.resize,
            "columns": columns,
            "per_shard": self.per_shard,
            "kind": PREPARED,
            **({"bits": self.shape.bits} if self.shape.bits != 16 else {}),
        }
        differing = self.store.claim(PLAN, plan)
        if differing:
            key, there = differing[0], self.store.read_json(PLAN)
            if key == "source":
                raise refuse(
                    "data",
                    self.source.where,
                    f"the files that {self.store.where(PLAN)} was begun with; a name, size or time of change is another now",
                    "read what is prepared already (data=prepared data.path=...), prepare into another folder, or remove it",
                )
            raise refuse(
                f"to: {key}",
                plan[key],
                f"{there.get(key)}, which {self.store.where(PLAN)} was begun with",
                "prepare into another folder, or remove this one",
            )

    def done(self, unit: ImageShard) -> bool:
        """Its marker is there and so are all bytes the marker promises."""
        if not self.store.exists(f"{unit.stem}.json"):
            return False
        return bool(self.store.size(f"{unit.stem}.npy") == self.store.read_json(f"{unit.stem}.json")["bytes"])

    def pending(self) -> list[ImageShard]:
        return [unit for unit in self.units() if not self.done(unit)]

    def write(self, unit: ImageShard) -> Wrote:
        """Decode a slice into its shard, a few hundred pictures in memory at a time."""
        began = time.perf_counter()
        listing = self.contents.parts[unit.part]
        name = f"{unit.stem}.npy"
        with self.store.scratch(name) as path:
            with path.open("wb") as file:
                sink = Sink(file, unit.stop - unit.start)
                for entry, label, pixels in decoded(listing, self.shape, unit.start, unit.stop, self.threads):
                    sink.add(entry, label, pixels)
                facts = sink.close()
                size = file.tell()
            self.store.publish(path, name)
        marker = {
            "start": unit.start,
            "stop": unit.stop,
            "bytes": size,
            "labels": sink.labels,
            "histogram": sink.histogram_CV.tolist(),
            **facts,
        }
        self.store.write(f"{unit.stem}.json", json.dumps(marker, sort_keys=True).encode())
        return Wrote(unit.part, unit.number, len(sink.labels), len(sink.skipped), time.perf_counter() - began)

    def finish(self) -> dict[str, Any]:
        """The manifest, out of the markers alone."""
        parts: dict[str, Any] = {}
        digest = hashlib.sha256(json.dumps([self.contents.classes, self.shape.size, self.shape.channels]).encode())
        for part, listing in self.contents.parts.items():
            units = [unit for unit in self.units() if unit.part == part]
            skipped, labels = list(listing.skipped), []
            histogram_CV = np.zeros((self.shape.channels, 256), np.int64)
            for unit in units:
                if not self.store.exists(f"{unit.stem}.json"):
                    raise Failed(f"{self.store.where(unit.stem)}: not written; run the same command again")
                marker = self.store.read_json(f"{unit.stem}.json")
                skipped += marker["skipped"]
                labels += marker["labels"]
                histogram_CV += np.asarray(marker["histogram"], np.int64).reshape(-1, 256) if marker["labels"] else 0
                digest.update(marker["sha256"].encode())
            too_bad(self.config, part, skipped, len(labels))
            parts[part] = {
                "rows": len(labels),
                "shards": [f"{unit.stem}.npy" for unit in units],
                "skipped": skipped,
                "counts": counts(torch.tensor(labels), self.contents.classes),
                "statistics": statistics_of(histogram_CV),
            }
        manifest = {
            "kind": PREPARED,
            "data": self.config.name,
            "classes": list(self.contents.classes),
            "size": self.shape.size,
            "channels": self.shape.channels,
            "resize": self.shape.resize,
            "content": digest.hexdigest(),
            "parts": parts,
        }
        self.store.write_json(MANIFEST, manifest)
        self.store.sweep()
        return manifest


def prepare(config: DataConfig, to: str, per_shard: int = 4096, threads: int | None = None) -> Iterator[Wrote]:
    """Every shard that is missing, one after another; the manifest once the last is written."""
    work = Preparation(config, to, per_shard, threads)
    work.agree()
    for unit in work.pending():
        yield work.write(unit)
    work.finish()
