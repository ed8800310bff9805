"""Pictures in a folder and their labels in a table beside them: CSV, TSV or parquet, a row a picture.

The column of files is the first whose values name pictures here: by path, by name, or by name without its ending.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from rayd.data.config import DataConfig
from rayd.data.sources.listing import (
    PARTS,
    Contents,
    Files,
    Listing,
    Source,
    by_files,
    choose,
    named_classes,
    split_test,
    word_in,
)
from rayd.data.sources.parquet import Rows
from rayd.errors import refuse

TABLES = (".csv", ".tsv", ".parquet")
LARGEST = 2**28
"""Bytes of a table; a larger one is no list of labels."""
LOOK = 50
"""Rows in which a column must mostly name pictures."""
SPLIT = "split"
"""A column of this name says which part a row belongs to."""

Table = dict[str, list[Any]]


class Pictures:
    """The pictures of a folder, by what a table may call them."""

    def __init__(self, names: Iterable[str]) -> None:
        self.paths = {name for name in names if not name.endswith(TABLES)}
        self.by_name = _once((PurePosixPath(name).name, name) for name in self.paths)
        self.by_stem = _once((PurePosixPath(name).stem, name) for name in self.paths)

    def find(self, value: Any, beside: str) -> str | None:
        """The picture that a cell of the table `beside` names."""
        text = str(value).strip().removeprefix("./")
        for path in (text, f"{PurePosixPath(beside).parent}/{text}"):
            if path in self.paths:
                return path
        name = PurePosixPath(text).name
        return self.by_name.get(name) or self.by_stem.get(name)


def _once(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Only the keys that one picture has."""
    pairs = list(pairs)
    count = Counter(key for key, _ in pairs)
    return {key: name for key, name in pairs if count[key] == 1}


def table(files: Files, config: DataConfig) -> Source | None:
    """One table, or one for each part, with a column of files and one of labels."""
    names = files.names()
    small = [name for name in names if name.endswith(TABLES) and files.stamp(name)[1] <= LARGEST]
    if not small:
        return None
    pictures, tables = Pictures(names), {name: _read(files, name) for name in small}
    columns = {name: column for name, rows in tables.items() if (column := _files_column(rows, pictures, name))}
    with_labels = [name for name in columns if len(tables[name]) > 1]
    chosen = choose(with_labels, word_in)
    chosen["train"] = chosen["train"] or [name for name in with_labels if name not in chosen["test"]]
    if not chosen["train"]:
        return None
    used = [name for names in chosen.values() for name in names]

    def contents() -> Contents:
        rows: dict[str, list[tuple[str, str]]] = {part: [] for part in PARTS}
        bad: dict[str, list[dict[str, str]]] = {part: [] for part in PARTS}
        for part, listed in chosen.items():
            for name in listed:
                _sort(part, name, tables[name], columns[name], pictures, config, rows, bad)
        classes, number = named_classes([label for pairs in rows.values() for _, label in pairs])
        parts = {
            part: _listing(files, pairs, number, bad[part])
            for part, pairs in rows.items()
            if pairs or (part == "train")
        }
        return Contents(classes, split_test(parts, config.name == "folder"))

    stamps = [files.stamp(name) for name in [*used, *sorted(pictures.paths)]]
    return Source(stamps, contents, 3, files.where, layout=f"pictures with labels in {', '.join(used)}")


def _listing(
    files: Files, pairs: Sequence[tuple[str, str]], number: Mapping[str, int], bad: list[dict[str, str]]
) -> Listing:
    listing = by_files(files, [name for name, _ in pairs], [number[label] for _, label in pairs])
    return Listing(listing.names, listing.labels, listing.fetch, bad)


def _sort(
    part: str,
    name: str,
    rows: Table,
    column: str,
    pictures: Pictures,
    config: DataConfig,
    good: dict[str, list[tuple[str, str]]],
    bad: dict[str, list[dict[str, str]]],
) -> None:
    """The rows of one table to their parts; a row without a picture or a label is bad."""
    labels = rows[_label_column(rows, column, name, config)]
    splits = rows.get(SPLIT, [part] * len(labels))
    for value, label, split in zip(rows[column], labels, splits, strict=True):
        text = "" if label is None else str(label).strip()
        path, here = pictures.find(value, name), _part(str(split), part)
        if path is None or not text:
            bad[here].append({"name": f"{name}: {value}", "why": "no label" if path else "no such file"})
        else:
            good[here].append((path, text))


def _part(word: str, otherwise: str) -> str:
    return next((part for part, words in PARTS.items() if word.strip().lower() in words), otherwise)


def _label_column(rows: Table, files_column: str, name: str, config: DataConfig) -> str:
    if config.label_column in rows:
        return config.label_column
    others = [column for column in rows if column not in (files_column, SPLIT)]
    if len(others) != 1:
        raise refuse("data.label_column", config.label_column, " | ".join(others), f"these are the columns of {name}")
    return others[0]


def _files_column(rows: Table, pictures: Pictures, name: str) -> str | None:
    """The first column of which most cells name pictures."""
    for column, values in rows.items():
        some = [value for value in values[:LOOK] if isinstance(value, str | int)]
        if some and 2 * sum(pictures.find(value, name) is not None for value in some) > len(some):
            return column
    return None


def _read(files: Files, name: str) -> Table:
    """The columns of a table, pictures left out."""
    if name.endswith(".parquet"):
        rows = Rows([files.open(name)], f"{files.where}/{name}")
        return {column: rows.column(column) for column in rows.plain_columns}
    text = files.read(name).decode("utf-8-sig", errors="replace")
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    lines = [line for line in csv.reader(io.StringIO(text), delimiter=delimiter) if any(line)]
    if not lines:
        return {}
    header = [re.sub(r"\s+", " ", cell.strip()) for cell in lines[0]]
    body = [line for line in lines[1:] if len(line) == len(header)]
    return {column: [line[c] for line in body] for c, column in enumerate(header)}
