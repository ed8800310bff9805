"""A dataset as its three splits: found, decoded into the cache the first time, mapped every time after.

Cached is, for each part, one uint8 .npy that is mapped and one of labels, published whole under a hash of what determines
the bytes: the files' names, sizes and times, the size and resize rule.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from rayd.data.builder import build, cache_folder
from rayd.data.config import NEED_PATH, DataConfig
from rayd.data.images import Images, Pixels, Spec, Splits, balance_rows, counts, seeded_order
from rayd.data.sources import formats
from rayd.data.sources.decode import Array, Shape, decode, in_threads
from rayd.data.sources.listing import Contents, Listing, Source, share_of_each, with_every_class
from rayd.errors import refuse
from rayd.machine import beat
from rayd.schema import fingerprint

VERSION = 3
"""Of the manifest; the cache of another version is built again."""
MOST_NAMED = 2 * 2**30
"""Bytes of images that are decoded because a card says so."""
MOST_OPEN = 4
_opened: OrderedDict[tuple[Any, ...], Splits] = OrderedDict()
"""The datasets this process opened last."""


def load(config: DataConfig) -> Splits:
    """Training, validation and test images; the validation images are carved out of the training set.

    A process opens a dataset once. Its files are looked at each time: other names, sizes or times are another dataset.
    """
    source = formats.find(config)
    code = config.own.source if config.own else ""
    key = fingerprint(config), code, fingerprint(source.identity), source.where, cache_folder()
    if key not in _opened:
        _opened[key] = split(config, _parts(config, source))
    _opened.move_to_end(key)
    while len(_opened) > MOST_OPEN:
        _opened.popitem(last=False)
    return _opened[key]


def closed(data: DataConfig, spec: Spec) -> str:
    """Why data that a card alone names, which may be a stranger's, are not opened; empty where they are."""
    side = spec.shape[1]
    if data.path is not None:
        return f"they lay in a folder, {data.path}: give data.path=..."
    if data.size not in (None, side):
        return f"their side is {data.size} in the card's config, {side} in its shape"
    if data.name == "generated" and data.classes != spec.classes:
        return f"they have {data.classes} classes in the card's config, {spec.classes} in its list"
    if data.name == "generated":
        images = data.count + data.count // 2
    else:
        images = sum(map(len, formats.find(data).contents().parts.values()))
    size = images * 3 * max(side, 32) ** 2
    if size > MOST_NAMED:
        return f"they take {size / 1e9:,.1f} GB: give data={data.name} data.size={side} to have them decoded"
    return ""


def split(config: DataConfig, parts: dict[str, Images]) -> Splits:
    """Validation images carved out of the training part, and the config's statistics where it gives some."""
    train, val = _carve(config, parts["train"])
    empty = [name for name, count in train.manifest["counts"].items() if not count]
    if empty and config.limit is None and config.name in NEED_PATH:
        few = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
        raise refuse("data.path", config.path, f"a training image of every class; {len(empty)} have none: {few}",
                     "add images of them, or leave their test images out")  # fmt: skip
    channels = train.spec.shape[0]
    if config.mean and config.std:
        if {len(config.mean), len(config.std)} != {channels}:
            raise refuse("data.mean", config.mean, f"one number for each of the {channels} channels, as in data.std")
        statistics = {"mean": list(config.mean), "std": list(config.std)}
    else:
        statistics = None
    splits = [train, val, parts["test"]]
    if config.balance:
        splits = [part.select(balance_rows(part.labels_N, config.seed)) for part in splits]
    return Splits(*(replace(part, manifest=part.manifest | {"given": statistics}) for part in splits))


def _carve(config: DataConfig, images: Images) -> tuple[Images, Images]:
    """Training and validation images."""
    n = len(images)
    n_val = int(config.val) if config.val >= 1 else round(config.val * min(n, config.limit or n))
    n_train = min(n - n_val, config.limit or n)
    if n_train < 1:
        raise refuse("data.val", config.val, f"fewer than the {n} training images")
    if config.split == "next":
        return images.select(torch.arange(n_train)), images.select(torch.arange(n_train, n_train + n_val))
    order = seeded_order(n, config.seed)
    if config.name == "folder":
        val, rest = share_of_each(order, images.labels_N, n_val / n)
        train = rest[:n_train]
    else:
        val, train = with_every_class(order[:n_val], order[n_val : n_val + n_train], images.labels_N)
    return images.select(train.sort().values), images.select(val.sort().values)


# ---- the decoded parts --------------------------------------------------------------------------------------------


def _parts(config: DataConfig, source: Source) -> dict[str, Images]:
    shape = Shape(config.size, config.channels or source.channels, config.resize, config.bits)
    facts: dict[str, Any] = {"name": config.name, "source": source.where, "resize": config.resize, "order": None}
    if source.in_place:
        contents = source.contents()
        parts = {part: _in_place(contents, part, listing, facts) for part, listing in contents.parts.items()}
    else:
        columns = [config.image_column, config.label_column]
        named = [VERSION, config.name, shape.size, shape.channels, shape.resize, shape.bits, columns, source.identity]
        named += [config.own.source] if config.own else []
        key = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:24]
        home = cache_folder() / f"data-{config.name}-{key}"
        build(home, _whole, lambda draft: _fill(draft, source, shape))
        manifest = json.loads((home / "manifest.json").read_bytes())
        parts = {part: _map(home, part, manifest, facts) for part in manifest["parts"]}
    for part, loaded in parts.items():
        too_bad(config, part, loaded.manifest["skipped"], len(loaded))
        if len(loaded) == 0:
            do = "give every class two images or more, or add a folder test/" if part == "test" else ""
            raise refuse("data.path", config.path, f"a dataset with at least one {part} image", do)
    return parts


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
    sizes = {path.name: path.stat().st_size for path in home.iterdir()}
    return all(sizes.get(name) == size for name, size in manifest["files"].items())


def _fill(draft: Path, source: Source, shape: Shape) -> None:
    draft.mkdir()
    contents = source.contents()
    facts = {part: _write(draft, part, listing, shape, contents) for part, listing in contents.parts.items()}
    sizes = {path.name: path.stat().st_size for path in sorted(draft.iterdir())}
    manifest = {"files": sizes, "classes": contents.classes, "parts": facts}
    (draft / "manifest.json").write_text(json.dumps(manifest, indent=1))


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
        "histogram": sink.histogram_CV.tolist(),
    }


def decoded(
    listing: Listing, shape: Shape, start: int = 0, stop: int | None = None, threads: int | None = None
) -> Iterator[tuple[str, int, Array | str]]:
    """Name, label and pixels (or what is wrong) of a slice of a listing, in order."""
    stop = len(listing) if stop is None else stop
    threads = threads or min(os.cpu_count() or 1, 16)
    results = in_threads(partial(decode, shape=shape), listing.fetch(start, stop), threads)
    for i, pixels in zip(range(start, stop), results, strict=True):
        beat(f"decoding, image {i}")
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
                raise refuse("data.size", None, f"a side in pixels: {name} is {_sides(pixels.shape)}, not square")
            self.shape = pixels.shape
            self.histogram_CV = np.zeros((len(pixels), 256), np.int64)
            self._header(self.most)
        if pixels.shape != self.shape:
            both = f"{name} is {_sides(pixels.shape)}, the first image {_sides(self.shape)}"
            raise refuse("data.size", None, f"a side in pixels: {both}")
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


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}"


def _map(home: Path, part: str, manifest: dict[str, Any], facts: dict[str, Any]) -> Images:
    pixels = torch.from_numpy(np.load(home / f"{part}.npy", mmap_mode="c", allow_pickle=False))
    labels = torch.from_numpy(np.load(home / f"{part}.labels.npy", allow_pickle=False))
    facts = facts | manifest["parts"][part]
    histogram_CV = np.asarray(facts.pop("histogram"), np.int64)
    return Images(pixels, labels, tuple(manifest["classes"]), facts["name"], facts, histogram_CV)


def _in_place(contents: Contents, part: str, listing: Listing, facts: dict[str, Any]) -> Images:
    """Of mapped files, or of arrays that are gathered in memory."""
    labels = torch.tensor(listing.labels, dtype=torch.int64)
    pixels: Tensor | Pixels
    if listing.pixels is None:
        arrays = [array for array in listing.fetch(0, len(listing)) if isinstance(array, np.ndarray)]
        pixels = torch.from_numpy(np.stack(arrays))
        content = hashlib.sha256(np.ascontiguousarray(pixels).tobytes() + labels.numpy().tobytes()).hexdigest()
    else:
        pixels, content = listing.pixels, listing.content
    facts = facts | {"content": content, "counts": counts(labels, contents.classes), "skipped": listing.skipped}
    return Images(pixels, labels, contents.classes, facts["name"], facts, listing.histogram_CV)
