"""Folders to read datasets from: here, or behind a URI that pyarrow's filesystems open."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from rayd.store.files import open_filesystem
from rayd.store.patience import current, persist

T = TypeVar("T")
AHEAD = 2**20
"""Bytes fetched at a time from behind a URI: a tar's headers lie close together."""


WHOLE = (".csv", ".tsv", ".parquet", ".npz", ".npy", ".safetensors", ".tar")
"""Endings of files that hold a dataset or its labels."""


class Folder:
    """A local folder; hidden files are not seen. `only`: of the files that hold datasets, the one that was named."""

    def __init__(self, path: Path, only: str = "") -> None:
        self.path, self.where, self.only = path, str(path / only), only

    def names(self, prefix: str = "") -> list[str]:
        listed: list[str] = []
        for here, folders, names in os.walk(self.path / prefix):
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = Path(here).relative_to(self.path)
            listed += [str(below / name) for name in names if not name.startswith(".")]
        return sorted(name for name in listed if not self.only or name == self.only or not name.endswith(WHOLE))

    def read(self, name: str) -> bytes:
        path = self.path / name
        return persist(path.read_bytes, "reading", str(path), current().patience)

    def open(self, name: str) -> BinaryIO:
        path = self.path / name
        return persist(lambda: path.open("rb"), "reading", str(path), current().patience)

    def stamp(self, name: str) -> list[Any]:
        path = self.path / name
        stat = persist(path.stat, "looking for", str(path), current().patience)
        return [name, stat.st_size, stat.st_mtime_ns]


class Bucket:
    """A folder behind s3://, gs:// and the like; listed once."""

    def __init__(self, uri: str) -> None:
        from pyarrow.fs import FileSelector, FileType

        self.filesystem, self.root, self.config = open_filesystem(uri, "data.path")
        self.where = uri.partition("?")[0]
        everything = FileSelector(self.root, allow_not_found=True, recursive=True)
        infos = self._persist("listing", "", lambda: self.filesystem.get_file_info(everything))
        files = {info.path[len(self.root) :].lstrip("/"): info for info in infos if info.type == FileType.File}
        self.infos = {name: info for name, info in files.items() if not Path(name).name.startswith(".")}

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.infos if name.startswith(f"{prefix}/" if prefix else ""))

    def _persist(self, doing: str, name: str, action: Callable[[], T]) -> T:
        return persist(action, doing, f"{self.where}/{name}", self.config.patience)

    def read(self, name: str) -> bytes:
        def whole() -> bytes:
            with self.filesystem.open_input_file(f"{self.root}/{name.removeprefix('./')}") as file:
                return bytes(file.read())

        return self._persist("reading", name, whole)

    def open(self, name: str) -> BinaryIO:
        path = f"{self.root}/{name.removeprefix('./')}"
        opened = self._persist("reading", name, lambda: self.filesystem.open_input_file(path))
        return io.BufferedReader(opened, AHEAD)

    def stamp(self, name: str) -> list[Any]:
        info = self.infos[name.removeprefix("./")]
        return [name, info.size, info.mtime_ns]
