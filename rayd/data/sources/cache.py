"""Decoded datasets on disk: per part one uint8 .npy that is mapped and one of labels, published whole under a hash.

The key holds what determines the bytes: the files' names, sizes and times, the size and resize rule. The manifest is
written last, into a folder that appears by one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from rayd.data.config import DataConfig
from rayd.data.images import Images, cache_folder, counts, statistics_of
from rayd.data.sources.decode import Array, Shape, decode_all
from rayd.data.sources.listing import Contents, Listing, Source
from rayd.errors import refuse

VERSION = 1


def images(config: DataConfig, source: Source) -> dict[str, Images]:
    shape = Shape(config.size, config.channels or source.channels, config.resize)
    if config.name == "generated":
        contents = source.contents()
        parts = {part: _in_memory(config, source, contents, part) for part in contents.parts}
    else:
        columns = [config.image_column, config.label_column]
        facts = [VERSION, config.name, shape.size, shape.channels, shape.resize, columns, source.identity]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
        home = cache_folder() / f"data-{config.name}-{key}"
        if not _whole(home):
            _build(home, source, shape)
        manifest = json.loads((home / "manifest.json").read_bytes())
        parts = {part: _map(home, part, config, source, manifest) for part in manifest["parts"]}
    for part, one in parts.items():
        _check(config, part, one)
    return parts


def _check(config: DataConfig, part: str, one: Images) -> None:
    too_bad(config, part, one.manifest["skipped"], len(one))
    if len(one) == 0:
        raise refuse("data.path", config.path, f"a dataset with at least one {part} image")


def too_bad(config: DataConfig, part: str, bad: list[dict[str, str]], good: int) -> None:
    """Refuse a part with a larger share of files that are no labelled pictures than the config allows."""
    share = len(bad) / max(len(bad) + good, 1)
    if share > config.max_bad:
        named = ", ".join(f"{item['name']} ({item['why']})" for item in bad[:5]) + (" ..." if len(bad) > 5 else "")
        raise refuse(
            "data.max_bad",
            config.max_bad,
            f"at least {share:.4f}, the share of bad files in the {part} part",
            f"{len(bad)} of {len(bad) + good} are no labelled pictures: {named}; remove them or raise it",
        )


def _whole(home: Path) -> bool:
    """The manifest is there and every file has the size it says (a cache that was cut short is built again)."""
    path = home / "manifest.json"
    if not path.exists():
        return False
    manifest = json.loads(path.read_bytes())
    held = {path.name: path.stat().st_size for path in home.iterdir()}
    return all(held.get(name) == size for name, size in manifest["files"].items())


def _build(home: Path, source: Source, shape: Shape) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{home.name}-"))
    try:
        contents = source.contents()
        facts = {part: _write(draft, part, listing, shape, contents) for part, listing in contents.parts.items()}
        sizes = {path.name: path.stat().st_size for path in sorted(draft.iterdir())}
        manifest = {"files": sizes, "classes": contents.classes, "parts": facts}
        (draft / "manifest.json").write_text(json.dumps(manifest, indent=1))
        if home.exists() and not _whole(home):
            shutil.rmtree(home)
        try:
            os.rename(draft, home)
        except OSError:
            if not _whole(home):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(folder: Path, part: str, listing: Listing, shape: Shape, contents: Contents) -> dict[str, Any]:
    """Decode a listing into PART.npy and PART.labels.npy, streaming; what it holds, for the manifest."""
    with (folder / f"{part}.npy").open("wb") as file:
        sink = Sink(file, len(listing))
        for name, label, pixels in decoded(listing, shape):
            sink.add(name, label, pixels)
        facts = sink.close()
    np.save(folder / f"{part}.labels.npy", np.asarray(sink.labels, np.int64), allow_pickle=False)
    labels = torch.tensor(sink.labels, dtype=torch.int64)
    return {
        "rows": len(labels),
        "skipped": [*listing.skipped, *facts["skipped"]],
        "content": facts["sha256"],
        "counts": counts(labels, contents.classes),
        "statistics": statistics_of(sink.histogram_CV),
    }


def decoded(
    listing: Listing, shape: Shape, start: int = 0, stop: int | None = None, threads: int | None = None
) -> Iterator[tuple[str, int, Array | str]]:
    """Name, label and pixels (or what is wrong) of a slice of a listing, in order."""
    stop = len(listing) if stop is None else stop
    results = decode_all(listing.fetch(start, stop), shape, threads or min(os.cpu_count() or 1, 16))
    for i, pixels in zip(range(start, stop), results, strict=True):
        yield listing.names[i], listing.labels[i], pixels


class Sink:
    """A .npy file written row by row; the header is put right at the end, when the count is known."""

    def __init__(self, file: BinaryIO, rows: int) -> None:
        self.file, self.most = file, rows
        self.labels: list[int] = []
        self.skipped: list[dict[str, str]] = []
        self.shape: tuple[int, ...] = ()
        self.hash = hashlib.sha256()
        self.histogram_CV = np.zeros((0, 256), np.int64)
        self.waiting: list[Array] = []

    def add(self, name: str, label: int, pixels: Array | str) -> None:
        if isinstance(pixels, str):
            self.skipped.append({"name": name, "why": pixels})
            return
        if not self.shape:
            if pixels.shape[1] != pixels.shape[2]:
                found = f"{name} is {pixels.shape[2]}x{pixels.shape[1]}, not square"
                raise refuse("data.size", None, f"a side in pixels: {found}")
            self.shape = pixels.shape
            self.histogram_CV = np.zeros((len(pixels), 256), np.int64)
            self._header(self.most)
        if pixels.shape != self.shape:
            found = f"{name} is {pixels.shape[2]}x{pixels.shape[1]}, the first image {self.shape[2]}x{self.shape[1]}"
            raise refuse("data.size", None, f"a side in pixels: {found}")
        self.labels.append(label)
        self.waiting.append(pixels)
        if len(self.waiting) >= 256:
            self._flush()

    def _flush(self) -> None:
        if not self.waiting:
            return
        block = np.stack(self.waiting)
        self.waiting = []
        data = block.tobytes()
        self.file.write(data)
        self.hash.update(data)
        for c in range(block.shape[1]):
            self.histogram_CV[c] += np.bincount(block[:, c].ravel(), minlength=256)

    def _header(self, rows: int) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def close(self) -> dict[str, Any]:
        self._flush()
        self.shape = self.shape or (0, 0, 0)
        self.file.seek(0)
        self._header(len(self.labels))
        self.file.seek(0, os.SEEK_END)
        self.hash.update(json.dumps([self.shape, self.labels]).encode())
        return {"sha256": self.hash.hexdigest(), "skipped": self.skipped}


def _map(home: Path, part: str, config: DataConfig, source: Source, manifest: dict[str, Any]) -> Images:
    facts = manifest["parts"][part]
    pixels = torch.from_numpy(np.load(home / f"{part}.npy", mmap_mode="c", allow_pickle=False))
    labels = torch.from_numpy(np.load(home / f"{part}.labels.npy", allow_pickle=False))
    own: dict[str, Any] = {"name": config.name, "source": source.where, "resize": config.resize, "order": source.order}
    return Images(pixels, labels, tuple(manifest["classes"]), config.name, own | facts)


def _in_memory(config: DataConfig, source: Source, contents: Contents, part: str) -> Images:
    listing = contents.parts[part]
    pixels = np.stack([one for one in listing.fetch(0, len(listing)) if isinstance(one, np.ndarray)])
    labels = torch.tensor(listing.labels)
    digest = hashlib.sha256(pixels.tobytes() + labels.numpy().tobytes()).hexdigest()
    own: dict[str, Any] = {
        "name": config.name,
        "source": source.where,
        "resize": config.resize,
        "order": None,
        "content": digest,
        "counts": counts(labels, contents.classes),
        "skipped": [],
    }
    return Images(torch.from_numpy(pixels), labels, contents.classes, config.name, own)
