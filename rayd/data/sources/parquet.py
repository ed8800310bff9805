"""Parquet files in the Hugging Face layout, a row group at a time."""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, BinaryIO

import numpy as np

from rayd.data.config import DataConfig
from rayd.data.sources.decode import Payload
from rayd.errors import refuse
from rayd.schema import from_json, value
from rayd.store.patience import first_line


def columns_of(features: Mapping[str, Any], known: Sequence[str], config: DataConfig, where: str) -> tuple[str, str]:
    """The columns of pictures and of labels: the config's, or where it names none the only ones of the features' kind."""
    chosen = []
    for key, wanted, kind in (("image", config.image_column, "Image"), ("label", config.label_column, "ClassLabel")):
        of_kind = [name for name, one in features.items() if isinstance(one, Mapping) and one.get("_type") == kind]
        if wanted not in known and (wanted != key or len(of_kind) != 1):
            raise refuse(f"data.{key}_column", wanted, " | ".join(known), f"these are the columns of {where}")
        chosen.append(wanted if wanted in known else of_kind[0])
    return chosen[0], chosen[1]


def names_of(features: Mapping[str, Any], label: str) -> list[str] | None:
    """The names of the classes, where a feature gives them."""
    feature = features.get(label)
    names = feature.get("names") if isinstance(feature, Mapping) else None
    return None if names is None else value(list[str], names, f"huggingface.info.features.{label}.names")


def payload(cell: Any) -> Payload:
    """A cell as a picture: bytes, the Hugging Face struct that holds them, or nested lists of pixels; else nothing."""
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    if isinstance(cell, list):
        try:
            array = np.asarray(cell)
        except ValueError:  # rows of different lengths
            return b""
        if array.dtype.kind not in "uif" or array.ndim not in (2, 3) or array.size == 0:
            return b""
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1) if array.shape[-1] in (1, 3) else array
        return array.astype(np.uint8)
    return cell if isinstance(cell, bytes) else b""


@contextlib.contextmanager
def readable(where: str) -> Iterator[None]:
    """pyarrow's errors about the contents of a file, of which some are an OSError without a number."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise refuse("data.path", where, f"whole tables ({first_line(error)})", "fetch or save them again") from error


class Rows:
    """The rows of several parquet files one after another."""

    def __init__(self, files: Sequence[BinaryIO], where: str) -> None:
        from pyarrow.parquet import ParquetFile

        self.where = where
        with readable(self.where):
            self.files = [ParquetFile(file) for file in files]
            size = sum(file.seek(0, os.SEEK_END) for file in files)
            if sum(file.metadata.num_rows for file in self.files) > size:
                raise refuse("data.path", where, "a picture of more than a byte in each row of parquet files")
        self.columns = list(self.files[0].schema_arrow.names)
        groups = [
            (i, g, file.metadata.row_group(g).num_rows)
            for i, file in enumerate(self.files)
            for g in range(file.metadata.num_row_groups)
        ]
        self._groups = groups
        self._starts: list[int] = [0, *accumulate(rows for _, _, rows in groups)]

    def __len__(self) -> int:
        return self._starts[-1]

    def column(self, name: str) -> list[Any]:
        """A whole (small) column."""
        self._require(name)
        with readable(self.where):
            return [value for file in self.files for value in file.read([name]).column(0).to_pylist()]

    def _require(self, name: str) -> None:
        lacking = [file for file in self.files if name not in file.schema_arrow.names]
        if lacking:
            known = " | ".join(lacking[0].schema_arrow.names)
            raise refuse("data.path", self.where, f"tables that all have the column {name}, not {known}")

    def read(self, name: str, start: int, stop: int, batch: int = 256) -> Iterator[Any]:
        """Rows start to stop of a (large) column."""
        self._require(name)
        g = bisect_right(self._starts, start) - 1
        while start < stop:
            if g == len(self._groups):
                raise refuse("data.path", self.where, "tables with as many rows as they state")
            file, group, _ = self._groups[g]
            at = self._starts[g]
            batches = self.files[file].iter_batches(batch, row_groups=[group], columns=[name])
            while True:
                with readable(self.where):
                    table = next(batches, None)
                if table is None:
                    break
                first, last = max(start, at), min(stop, at + table.num_rows)
                if first < last:
                    yield from table.column(0).slice(first - at, last - first).to_pylist()
                    start = last
                at += table.num_rows
                if start >= stop:
                    return
            g += 1

    def pictures(self, column: str, start: int, stop: int) -> Iterator[Payload]:
        return map(payload, self.read(column, start, stop))

    @property
    def plain_columns(self) -> list[str]:
        """The columns of texts and whole numbers."""
        import pyarrow.types as types

        schema = self.files[0].schema_arrow
        plain = (types.is_string, types.is_large_string, types.is_integer)
        return [field.name for field in schema if any(of_kind(field.type) for of_kind in plain)]

    @property
    def features(self) -> dict[str, Any]:
        """What the Hugging Face metadata says of the columns."""
        stored = (self.files[0].schema_arrow.metadata or {}).get(b"huggingface")
        try:
            return dict(from_json(stored)["info"]["features"]) if stored else {}
        except (ValueError, KeyError, TypeError):
            return {}  # metadata of another kind
