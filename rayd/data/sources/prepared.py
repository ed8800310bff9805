"""Shards that jobs.prepare wrote: mapped where they lie, or fetched into the cache from behind a URI."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from rayd.data.config import DataConfig
from rayd.data.images import Pixels
from rayd.data.sources.decode import Array
from rayd.data.sources.listing import Contents, Files, Listing, Numbered, Source, split_test
from rayd.data.sources.places import Folder
from rayd.errors import Failed, refuse

PREPARED = "rayd prepared images"
"""The kind that the manifest of prepared shards states."""


def prepared(files: Files, config: DataConfig) -> Source | None:
    if "manifest.json" not in files.names():
        return None
    manifest = json.loads(files.read("manifest.json"))
    if manifest.get("kind") != PREPARED:
        return None
    if config.size not in (None, manifest["size"]):
        raise refuse("data.size", config.size, f"{manifest['size']} or null for {files.where}", "or prepare it again")

    def contents() -> Contents:
        parts = {}
        for part, facts in manifest["parts"].items():
            markers = [json.loads(files.read(f"{Path(name).stem}.json")) for name in facts["shards"]]
            labels = [label for marker in markers for label in marker["labels"]]
            skipped = [item for marker in markers for item in marker["skipped"]]
            histograms = [np.asarray(marker["histogram"], np.int64) for marker in markers if marker["labels"]]
            names = [name for name, marker in zip(facts["shards"], markers, strict=True) if marker["labels"]]
            if isinstance(files, Folder):
                sizes = [len(marker["labels"]) for marker in markers if marker["labels"]]
                mapped = Pixels([_mapped(files.path / name, n) for name, n in zip(names, sizes, strict=True)])
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


def _mapped(path: Path, rows: int) -> torch.Tensor:
    try:
        shard = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise Failed(f"{path}: not readable ({error}); remove it and run jobs.prepare again") from error
    if len(shard) != rows:
        raise Failed(f"{path}: holds {len(shard)} images, its marker says {rows}; remove it and run jobs.prepare again")
    return torch.from_numpy(shard)


def _rows(files: Files, names: list[str], start: int, stop: int) -> Iterator[Array]:
    """Images start to stop of the shards one after another, a shard in memory at a time."""
    first = 0
    for name in names:
        if first >= stop:
            return
        shard = np.load(io.BytesIO(files.read(name)), allow_pickle=False)
        yield from shard[max(start - first, 0) : max(stop - first, 0)]
        first += len(shard)
