"""A folder that `datasets` wrote by save_to_disk: Arrow files and what they hold, read without `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from rayd.data.config import DataConfig
from rayd.data.sources.decode import Payload
from rayd.data.sources.listing import Contents, Files, Listing, Numbered, Source, choose, label_index, split_test
from rayd.data.sources.parquet import columns_of, names_of, payload, readable
from rayd.data.sources.places import Folder
from rayd.errors import refuse
from rayd.schema import fields, from_json, value


def saved(files: Files, config: DataConfig) -> Source | None:
    """A dataset, or a dict of them by split."""
    names = files.names()
    if "dataset_dict.json" in names:
        splits = fields(_plain(files, "dataset_dict.json"), {"splits": list[str]}, "dataset_dict.json")["splits"]
        chosen = choose(splits, lambda split, word: split.lower() == word)
        chosen["train"] = chosen["train"] or [split for split in splits if split not in chosen["test"]][:1]
        roots = {part: f"{found[0]}/" for part, found in chosen.items() if found}
    elif "state.json" in names and "dataset_info.json" in names:
        roots = {"train": ""}
    else:
        return None
    arrows = {part: _arrows(files, root) for part, root in roots.items()}

    def contents() -> Contents:
        name = f"{roots['train']}dataset_info.json"
        features = value(Mapping[str, Any] | None, fields(_plain(files, name), {}, name).get("features"), name) or {}
        tables = {part: _table(files, names) for part, names in arrows.items()}
        image, label = columns_of(features, tables["train"].column_names, config, files.where)
        labels = {part: table.column(label).to_pylist() for part, table in tables.items()}
        every = [one for column in labels.values() for one in column]
        classes, number = label_index(names_of(features, label), every, config)
        parts = {
            part: Listing(
                Numbered(arrows[part][0], len(table)),
                [number[one] for one in labels[part]],
                partial(_pictures, table.column(image)),
            )
            for part, table in tables.items()
        }
        return Contents(classes, split_test(parts, config.name == "folder"))

    stamps = [files.stamp(name) for names in arrows.values() for name in names]
    return Source(stamps, contents, 3, files.where, layout="a folder that datasets saved")


def _arrows(files: Files, root: str) -> list[str]:
    state = fields(_plain(files, f"{root}state.json"), {"_data_files": list[Mapping[str, Any]]}, f"{root}state.json")
    listed = [
        f"{root}{fields(one, {'filename': str}, f'{root}state.json')['filename']}" for one in state["_data_files"]
    ]
    if not set(listed) <= set(files.names()):
        raise refuse(f"{root}state.json", sorted(set(listed) - set(files.names()))[0], "a file of the folder")
    if not listed:
        raise refuse("data.path", f"{files.where}/{root}", "a dataset with rows", "its state.json lists no files")
    return listed


def _plain(files: Files, name: str) -> Any:
    try:
        return from_json(files.read(name))
    except ValueError as error:
        raise refuse("data.path", f"{files.where}/{name}", f"readable JSON ({error})", "save it again") from error


def _table(files: Files, names: list[str]) -> Any:
    """The rows of several files; local ones stay on disk until they are read."""
    import pyarrow as pa

    tables = []
    for name in names:
        source = pa.memory_map(str(files.path / name)) if isinstance(files, Folder) else files.open(name)
        with readable(files.where), pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
            table.validate(full=True)
            tables.append(table)
    with readable(files.where):
        return pa.concat_tables(tables)


def _pictures(column: Any, start: int, stop: int, block: int = 64) -> Iterator[Payload]:
    for first in range(start, stop, block):
        yield from map(payload, column.slice(first, min(block, stop - first)).to_pylist())
