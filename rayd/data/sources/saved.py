"""A folder that `datasets` wrote by save_to_disk: Arrow files and what they hold, read without `datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from rayd.data.config import DataConfig
from rayd.data.sources.decode import Payload
from rayd.data.sources.listing import Contents, Files, Listing, Numbered, Source, choose, label_index, split_test
from rayd.data.sources.parquet import columns_of, names_of, payload
from rayd.data.sources.places import Folder
from rayd.errors import refuse


def saved(files: Files, config: DataConfig) -> Source | None:
    """A dataset, or a dict of them by split."""
    names = files.names()
    if "dataset_dict.json" in names:
        splits = [str(split) for split in json.loads(files.read("dataset_dict.json"))["splits"]]
        chosen = choose(splits, lambda split, word: split.lower() == word)
        chosen["train"] = chosen["train"] or [split for split in splits if split not in chosen["test"]][:1]
        roots = {part: f"{found[0]}/" for part, found in chosen.items() if found}
    elif "state.json" in names and "dataset_info.json" in names:
        roots = {"train": ""}
    else:
        return None
    arrows = {part: _arrows(files, root) for part, root in roots.items()}

    def contents() -> Contents:
        features = json.loads(files.read(f"{roots['train']}dataset_info.json")).get("features") or {}
        tables = {part: _table(files, names) for part, names in arrows.items()}
        image, label = columns_of(features, tables["train"].column_names, config, files.where)
        labels = {part: table.column(label).to_pylist() for part, table in tables.items()}
        every = [value for column in labels.values() for value in column]
        classes, number = label_index(names_of(features, label), every, config)
        parts = {
            part: Listing(
                Numbered(arrows[part][0], len(table)),
                [number[value] for value in labels[part]],
                partial(_pictures, table.column(image)),
            )
            for part, table in tables.items()
        }
        return Contents(classes, split_test(parts, config.name == "folder"))

    stamps = [files.stamp(name) for names in arrows.values() for name in names]
    return Source(stamps, contents, 3, files.where, layout="a folder that datasets saved")


def _arrows(files: Files, root: str) -> list[str]:
    listed = json.loads(files.read(f"{root}state.json")).get("_data_files") or []
    if not listed:
        raise refuse("data.path", f"{files.where}/{root}", "a dataset with rows", "its state.json lists no files")
    return [f"{root}{one['filename']}" for one in listed]


def _table(files: Files, names: list[str]) -> Any:
    """The rows of several files; local ones stay on disk until they are read."""
    import pyarrow as pa

    tables = []
    for name in names:
        source = pa.memory_map(str(files.path / name)) if isinstance(files, Folder) else files.open(name)
        with pa.ipc.open_stream(source) as reader:
            tables.append(reader.read_all())
    return pa.concat_tables(tables)


def _pictures(column: Any, start: int, stop: int, block: int = 64) -> Iterator[Payload]:
    for first in range(start, stop, block):
        for value in column.slice(first, min(block, stop - first)).to_pylist():
            yield payload(value)
