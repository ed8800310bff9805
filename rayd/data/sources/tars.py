"""WebDataset tars: headers and labels are indexed, pictures are read by range. Nothing is unpickled or executed.

The headers are parsed by tarfile. webdataset's own readers stream whole members and know no offsets, so they cannot
serve the range reads.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from rayd.data.config import DataConfig
from rayd.data.sources.decode import LARGEST
from rayd.data.sources.listing import Contents, Files, Listing, Source, choose, label_index, split_test, word_in
from rayd.errors import Refused, refuse

PICTURES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "tif", "tiff", "img", "image"}
LABELS = {"cls", "json", "label"}
LARGEST_HEADER = 2**20
"""Bytes of one header, with its long name or attributes, and of one label; more is no honest tar."""


def webdataset(files: Files, config: DataConfig) -> Source | None:
    """Tars of samples (KEY.jpg with KEY.cls, or KEY.json with a label), in train/ and val/ or named train-*, val-*."""
    listed = files.names()
    tars = [name for name in listed if name.endswith(".tar")]
    chosen = choose(tars, word_in)
    chosen["train"] = chosen["train"] or [name for name in tars if name not in chosen["test"]]
    if not chosen["train"]:
        return None
    chosen = {part: names for part, names in chosen.items() if names}
    names_files = [name for name in listed if Path(name).name in ("classes.txt", "classnames.txt")][:1]

    def contents() -> Contents:
        names = [line for name in names_files for line in files.read(name).decode().split("\n") if line]
        indexed = {part: _index(files, tars) for part, tars in chosen.items()}
        labels = [label for samples, _ in indexed.values() for label in samples.labels]
        if not labels:
            raise refuse("data.path", files.where, "tars with samples of KEY.jpg (png, webp) and KEY.cls or KEY.json")
        classes, number = label_index(names or None, labels, config)
        parts = {
            part: Listing(samples, [number[label] for label in samples.labels], samples.fetch(files), skipped)
            for part, (samples, skipped) in indexed.items()
        }
        return Contents(classes, split_test(parts, config.name == "folder"))

    used = [*names_files, *(name for names in chosen.values() for name in names)]
    return Source([files.stamp(name) for name in used], contents, 3, files.where, layout="tars of samples")


@dataclass
class Samples(Sequence[str]):
    """Where the labelled pictures of some tars lie, in columns, since there may be millions; a sequence of names."""

    tars: list[str]
    tar: array[int] = field(default_factory=lambda: array("l"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    keys: list[str] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)

    def add(self, tar: int, key: str, offset: int, size: int, label: int | str) -> None:
        for column, value in ((self.tar, tar), (self.offset, offset), (self.size, size)):
            column.append(value)
        self.keys.append(key)
        self.labels.append(label)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: Any) -> Any:
        return f"{self.tars[self.tar[i]]}:{self.keys[i]}"

    def fetch(self, files: Files) -> Callable[[int, int], Iterator[bytes]]:
        """Pictures by range; each tar is opened once and read onwards."""

        def read(start: int, stop: int) -> Iterator[bytes]:
            for number, rows in groupby(range(start, stop), lambda i: self.tar[i]):
                with files.open(self.tars[number]) as file:
                    for i in rows:
                        file.seek(self.offset[i])
                        yield file.read(self.size[i])

        return read


def _index(files: Files, tars: Sequence[str]) -> tuple[Samples, list[dict[str, str]]]:
    """Headers and labels only; pictures are read when they are decoded."""
    samples = Samples(list(tars))
    skipped: list[dict[str, str]] = []
    for number, tar in enumerate(tars):
        pictures: dict[str, tuple[int, int]] = {}
        labels: dict[str, int | str] = {}
        with files.open(tar) as file:
            for name, offset, size in members(file, f"{files.where}/{tar}"):
                folder, slash, last = name.rpartition("/")
                stem, _, extension = last.partition(".")
                key, kind = folder + slash + stem, extension.rpartition(".")[2].lower()
                if kind in PICTURES and size <= LARGEST:
                    pictures[key] = (offset, size)
                elif kind in LABELS and size <= LARGEST_HEADER:
                    file.seek(offset)
                    label = _label(file.read(size), kind)
                    if label is not None:
                        labels[key] = label
        for key in dict.fromkeys([*pictures, *labels]):
            if key in pictures and key in labels:
                samples.add(number, key, *pictures[key], labels[key])
            else:
                skipped.append({"name": f"{tar}:{key}", "why": "no label" if key in pictures else "no picture"})
    return samples, skipped


def members(file: BinaryIO, where: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every regular file of a tar; a damaged or crafted tar is refused.

    tarfile takes an invalid header after the first for the end, and may walk backwards over a negative size.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    at = 0
    try:
        tar = tarfile.TarFile(fileobj=_Headers(file), encoding="utf-8", errors="replace")  # type: ignore[arg-type]
        while (member := tar.next()) is not None:
            if tar.offset <= at or member.offset_data + member.size > end:
                raise tarfile.ReadError("a size that cannot be")
            at = tar.offset
            tar.members = []  # type: ignore[attr-defined]
            if member.isreg() and not member.issparse():
                yield member.name, member.offset_data, member.size
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise _damaged(where, at) from error
    file.seek(at)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise _damaged(where, at)


def _damaged(where: str, at: int) -> Refused:
    return refuse("data.path", where, f"whole tars; this one is damaged at byte {at}", "make it again")


class _Headers:
    """A file of which tarfile may read headers only: a header never asks for much, nor for less than nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._read(size)


def _label(data: bytes, kind: str) -> int | str | None:
    text = data.decode(errors="replace").strip()
    if kind == "json":
        try:
            label = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if isinstance(label, dict):
            label = next((label[key] for key in ("label", "cls", "class") if key in label), None)
        return label if isinstance(label, int | str) else None
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else text or None
