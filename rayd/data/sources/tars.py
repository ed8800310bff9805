"""WebDataset tars: an index of headers and labels, pictures by range. Nothing in them is unpickled or executed."""

from __future__ import annotations

import contextlib
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from rayd.data.config import DataConfig
from rayd.data.sources.listing import Contents, Files, Listing, Source, choose, label_index, split_test
from rayd.errors import refuse

PICTURES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "tif", "tiff", "img", "image"}
LABELS = {"cls", "json", "label"}
BLOCK = 512


def webdataset(files: Files, config: DataConfig) -> Source | None:
    """Tars of samples (KEY.jpg with KEY.cls, or KEY.json with a label), in train/ and val/ or named train-*, val-*."""
    listed = files.names()
    tars = [name for name in listed if name.endswith(".tar")]
    chosen = choose(tars, lambda name, word: re.search(rf"(^|[/_.-]){word}([/_.-]|\d)", name) is not None)
    chosen["train"] = chosen["train"] or [name for name in tars if name not in chosen["test"]]
    if not chosen["train"]:
        return None
    chosen = {part: names for part, names in chosen.items() if names}
    given = [name for name in listed if Path(name).name in ("classes.txt", "classnames.txt")]

    def contents() -> Contents:
        named = files.read(given[0]).decode().split("\n") if given else []
        indexed = {part: _index(files, names) for part, names in chosen.items()}
        found = [label for samples, _ in indexed.values() for label in samples.labels]
        if not found:
            raise refuse("data.path", files.where, "tars with samples of KEY.jpg (png, webp) and KEY.cls or KEY.json")
        classes, index = label_index([one for one in named if one] or None, found, config)
        parts = {
            part: Listing(samples, [index[label] for label in samples.labels], _Fetch(files, samples), skipped)
            for part, (samples, skipped) in indexed.items()
        }
        return Contents(classes, split_test(parts))

    used = [*given, *(name for names in chosen.values() for name in names)]
    return Source([files.stamp(name) for name in used], contents, 3, files.where)


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


def _index(files: Files, tars: Sequence[str]) -> tuple[Samples, list[dict[str, str]]]:
    """Headers and labels only: pictures are read when they are decoded. Nothing is unpickled."""
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
                if kind in PICTURES:
                    pictures[key] = (offset, size)
                elif kind in LABELS:
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
    """Name, offset and size of every regular file of a tar (ustar, GNU, pax), in a third of tarfile's time."""
    at = 0
    extra: dict[str, str] = {}
    while True:
        file.seek(at)
        head = file.read(BLOCK)
        if len(head) < BLOCK or not head[0]:
            return
        if sum(head) - sum(head[148:156]) + 8 * 32 != int(head[148:156].rstrip(b"\0 ") or b"0", 8):
            raise refuse("data.path", where, f"whole tars; this one is damaged at byte {at}", "make it again")
        binary = head[124] & 0x80
        size = int.from_bytes(head[125:136], "big") if binary else int(head[124:136].rstrip(b"\0 ") or b"0", 8)
        kind, offset = head[156:157], at + BLOCK
        size = int(extra.get("size", size)) if kind in b"0\0" else size
        at = offset + -(-size // BLOCK) * BLOCK
        if kind in b"xL":
            held = file.read(size)
            extra |= {"path": held.rstrip(b"\0").decode()} if kind == b"L" else dict(_pax(held))
        elif kind != b"g":
            if kind in b"0\0":
                folder = head[345:500].rstrip(b"\0") if head[257:263] == b"ustar\0" else b""
                plain = (folder + b"/" if folder else b"") + head[:100].rstrip(b"\0")
                yield extra.get("path") or plain.decode(errors="replace"), offset, size
            extra = {}


def _pax(held: bytes) -> Iterator[tuple[str, str]]:
    while held:
        length = int(held[: held.index(b" ")])
        key, _, value = held[held.index(b" ") + 1 : length - 1].decode().partition("=")
        yield key, value
        held = held[length:]


def _label(data: bytes, kind: str) -> int | str | None:
    text = data.decode(errors="replace").strip()
    if kind == "json":
        try:
            held = json.loads(text)
        except json.JSONDecodeError:
            return None
        if isinstance(held, dict):
            held = next((held[key] for key in ("label", "cls", "class") if key in held), None)
        return held if isinstance(held, int | str) else None
    return int(text) if re.fullmatch(r"-?\d+", text) else text or None


class _Fetch:
    """Pictures by range; each tar is opened once and read onwards."""

    def __init__(self, files: Files, samples: Samples) -> None:
        self.files, self.samples = files, samples

    def __call__(self, start: int, stop: int) -> Iterator[bytes]:
        held = self.samples
        with contextlib.ExitStack() as stack:
            number, file = -1, None
            for i in range(start, stop):
                if held.tar[i] != number or file is None:
                    stack.close()
                    number = held.tar[i]
                    file = stack.enter_context(self.files.open(held.tars[number]))
                file.seek(held.offset[i])
                yield file.read(held.size[i])
