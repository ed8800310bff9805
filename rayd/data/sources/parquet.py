"""Parquet files in the Hugging Face layout, a row group at a time."""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, BinaryIO

from rayd.errors import refuse
from rayd.schema import from_json, value
from rayd.store.patience import first_line


class Rows:
    """The rows of several parquet files one after another."""

    def __init__(self, files: Sequence[BinaryIO], where: str) -> None:
        from pyarrow.parquet import ParquetFile

        self.where = where
        with self._readable():
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
        with self._readable():
            return [value for file in self.files for value in file.read([name]).column(0).to_pylist()]

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """pyarrow's errors about the contents of a file, of which some are an OSError without a number."""
        from pyarrow import ArrowException

        try:
            yield
        except (ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise refuse("data.path", self.where, f"parquet files ({first_line(error)})", "fetch them again") from error

    def read(self, name: str, start: int, stop: int, batch: int = 256) -> Iterator[Any]:
        """Rows start to stop of a (large) column."""
        g = bisect_right(self._starts, start) - 1
        while start < stop:
            file, group, _ = self._groups[g]
            at = self._starts[g]
            batches = self.files[file].iter_batches(batch, row_groups=[group], columns=[name])
            while True:
                with self._readable():
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

    def pictures(self, column: str, start: int, stop: int) -> Iterator[bytes]:
        """The files of a column of pictures: bytes, or the Hugging Face struct that holds them."""
        for cell in self.read(column, start, stop):
            data = cell.get("bytes") if isinstance(cell, dict) else cell
            yield data if isinstance(data, bytes) else b""

    def label_names(self, name: str) -> list[str] | None:
        """Class names as the Hugging Face metadata gives them."""
        stored = (self.files[0].schema_arrow.metadata or {}).get(b"huggingface")
        try:
            feature = from_json(stored)["info"]["features"][name] if stored else {}
            return value(list[str] | None, feature.get("names"), f"huggingface.info.features.{name}.names")
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # no metadata of this kind
