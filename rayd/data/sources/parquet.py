"""Parquet files in the Hugging Face layout, a row group at a time."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, BinaryIO


class Rows:
    """The rows of several parquet files one after another."""

    def __init__(self, files: Sequence[BinaryIO]) -> None:
        from pyarrow.parquet import ParquetFile

        self.files = [ParquetFile(file) for file in files]
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
        return [value for file in self.files for value in file.read([name]).column(0).to_pylist()]

    def read(self, name: str, start: int, stop: int, batch: int = 256) -> Iterator[Any]:
        """Rows start to stop of a (large) column."""
        g = bisect_right(self._starts, start) - 1
        while start < stop:
            file, group, _ = self._groups[g]
            at = self._starts[g]
            for table in self.files[file].iter_batches(batch, row_groups=[group], columns=[name]):
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
        for value in self.read(column, start, stop):
            yield (value.get("bytes") if isinstance(value, dict) else value) or b""

    def label_names(self, name: str) -> list[str] | None:
        """Class names as the Hugging Face metadata gives them."""
        stored = (self.files[0].schema_arrow.metadata or {}).get(b"huggingface")
        feature = json.loads(stored).get("info", {}).get("features", {}).get(name, {}) if stored else {}
        return feature.get("names") if isinstance(feature, dict) else None
