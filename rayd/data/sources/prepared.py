"""Shards that jobs.prepare wrote: mapped where they lie, or fetched into the cache from behind a URI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayd.data.config import DataConfig
from rayd.data.images import Pixels
from rayd.data.sources.decode import Array
from rayd.data.sources.listing import Contents, Files, Listing, Numbered, Source, split_test
from rayd.data.sources.places import Folder
from rayd.errors import Failed, refuse
from rayd.schema import fields, from_json
from rayd.store.arrays import map_npy, npy

PREPARED = "rayd prepared images"
"""The kind that the manifest of prepared shards states."""


def prepared(files: Files, config: DataConfig) -> Source | None:
    if "manifest.json" not in files.names():
        return None
    manifest = _plain(files, "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("kind") != PREPARED:
        return None
    fields(manifest, MANIFEST, f"{files.where}/manifest.json")
    classes, channels, side = manifest["classes"], manifest["channels"], manifest["size"]
    fields(manifest["parts"], {"train": Mapping[str, Any]}, f"{files.where}/manifest.json: parts")
    if channels not in (1, 3) or not 1 <= side <= 2**14 or not classes or len(set(classes)) != len(classes):
        raise refuse(f"{files.where}/manifest.json: classes", classes, "names, each once, of images of 1 or 3 channels")
    if config.size not in (None, manifest["size"]):
        raise refuse("data.size", config.size, f"{manifest['size']} or null for {files.where}", "or prepare it again")

    def contents() -> Contents:
        parts = {}
        for part, facts in manifest["parts"].items():
            fields(facts, {"shards": list[str]}, f"{files.where}/manifest.json: parts.{part}")
            markers = [_marker(files, name, len(classes), channels) for name in facts["shards"]]
            labels = [label for marker in markers for label in marker["labels"]]
            if not labels:
                raise refuse(
                    f"{files.where}/manifest.json: parts.{part}", facts["shards"], "shards with at least one image"
                )
            skipped = [item for marker in markers for item in marker["skipped"]]
            histograms = [np.asarray(marker["histogram"], np.int64) for marker in markers if marker["labels"]]
            names = [name for name, marker in zip(facts["shards"], markers, strict=True) if marker["labels"]]
            if isinstance(files, Folder):
                sizes = [len(marker["labels"]) for marker in markers if marker["labels"]]
                shape = (channels, side, side)
                mapped = Pixels([_mapped(files.path / name, (n, *shape)) for name, n in zip(names, sizes, strict=True)])
            else:
                mapped = None
            parts[part] = Listing(
                Numbered(part, len(labels)),
                labels,
                partial(_rows, files, names),
                skipped,
                mapped,
                np.sum(histograms, axis=0),
                f"{manifest['content']}/{part}",
            )
        return Contents(tuple(manifest["classes"]), split_test(parts))

    identity = [files.stamp("manifest.json"), manifest["content"]]
    return Source(identity, contents, manifest["channels"], files.where, in_place=isinstance(files, Folder))


MANIFEST: Mapping[str, Any] = {
    "classes": list[str], "channels": int, "size": int, "content": str, "parts": Mapping[str, Any],
}  # fmt: skip
MARKER: Mapping[str, Any] = {
    "labels": list[int], "skipped": list[Mapping[str, str]], "histogram": list[list[int]],
}  # fmt: skip


def _plain(files: Files, name: str) -> Any:
    try:
        return from_json(files.read(name))
    except ValueError as error:
        raise Failed(f"{files.where}/{name}: not readable ({error}); remove it and run jobs.prepare again") from error


def _marker(files: Files, shard: str, classes: int, channels: int) -> dict[str, Any]:
    name = f"{Path(shard).stem}.json"
    where = f"{files.where}/{name}"
    if Path(shard).name != shard:
        raise refuse(f"{files.where}/manifest.json: shards", shard, "a plain file name")
    marker = fields(_plain(files, name), MARKER, where)
    labels, histogram = marker["labels"], marker["histogram"]
    if labels and not 0 <= min(labels) <= max(labels) < classes:
        raise refuse(f"{where}: labels", labels[:9], f"0 to {classes - 1}")
    counts = [count for row in histogram for count in row]
    whole = len(histogram) == channels and len(counts) == 256 * channels
    if labels and not (whole and 0 <= min(counts) <= max(counts) < 2**53):
        raise refuse(f"{where}: histogram", [len(row) for row in histogram], f"{channels} rows of 256 counts")
    return marker


def _mapped(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    try:
        shard = map_npy(path)
    except (OSError, ValueError) as error:
        raise Failed(f"{path}: not readable ({error}); remove it and run jobs.prepare again") from error
    _fits(str(path), shard, shape)
    return torch.from_numpy(shard)


def _fits(where: str, shard: Array, shape: tuple[int, ...]) -> None:
    if shard.shape != shape or shard.dtype != np.uint8:
        what = f"{shard.shape} numbers of {shard.dtype}"
        raise Failed(f"{where}: holds {what}, its marker says {shape}; remove it and run jobs.prepare again")


def _rows(files: Files, names: list[str], start: int, stop: int) -> Iterator[Array]:
    """Images start to stop of the shards one after another, a shard in memory at a time."""
    first = 0
    for name in names:
        if first >= stop:
            return
        try:
            shard = npy(files.read(name))
        except ValueError as error:
            raise Failed(f"{files.where}/{name}: not readable ({error}); run jobs.prepare again") from error
        yield from shard[max(start - first, 0) : max(stop - first, 0)]
        first += len(shard)
