"""WebDataset tars: an index of headers and labels, pictures by range. Nothing in them is unpickled or executed."""

from __future__ import annotations

import contextlib
import json
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayd.data import DataConfig
from rayd.errors import refuse
from rayd.sources.listing import Contents, Files, Listing, Source, choose, label_index, split_test

PICTURES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "tif", "tiff", "img", "image"}


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
    """Headers only (and labels): pictures are read when they are decoded. Nothing is unpickled."""
    samples = Samples(list(tars))
    skipped: list[dict[str, str]] = []
    for number, name in enumerate(tars):
        pictures: dict[str, tuple[int, int]] = {}
        labels: dict[str, Any] = {}
        with files.open(name) as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                stem, _, extension = Path(member.name).name.partition(".")
                key = str(Path(member.name).parent / stem)
                kind = extension.rsplit(".", 1)[-1].lower()
                if kind in PICTURES:
                    pictures[key] = (member.offset_data, member.size)
                elif kind in ("cls", "json", "label"):
                    held = tar.extractfile(member)
                    label = _label(held.read() if held else b"", kind)
                    if label is not None:
                        labels[key] = label
        for key in dict.fromkeys([*pictures, *labels]):
            if key in pictures and key in labels:
                samples.add(number, key, *pictures[key], labels[key])
            else:
                skipped.append({"name": f"{name}:{key}", "why": "no label" if key in pictures else "no picture"})
    return samples, skipped


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
