"""Folders to read datasets from: here, or behind a URI that pyarrow's filesystems open."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

from rayd.data.sources.listing import Files
from rayd.errors import refuse

AHEAD = 2**20
"""Bytes fetched at a time from behind a URI: a tar's headers lie close together."""


class Folder:
    """A local folder; hidden files are not seen."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)

    def names(self, prefix: str = "") -> list[str]:
        listed: list[str] = []
        for here, folders, names in os.walk(self.path / prefix):
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = Path(here).relative_to(self.path)
            listed += [str(below / name) for name in names if not name.startswith(".")]
        return sorted(listed)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        return (self.path / name).open("rb")

    def stamp(self, name: str) -> list[Any]:
        stat = (self.path / name).stat()
        return [name, stat.st_size, stat.st_mtime_ns]


class Bucket:
    """A folder behind s3://, gs:// and the like; listed once."""

    def __init__(self, uri: str) -> None:
        import pyarrow
        from pyarrow.fs import FileSelector, FileSystem, FileType

        self.where = uri
        try:
            self.filesystem, self.root = FileSystem.from_uri(uri)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
            raise refuse("data.path", uri, "a folder, file://, s3:// or gs://", str(error).splitlines()[0]) from error
        infos = self.filesystem.get_file_info(FileSelector(self.root, allow_not_found=True, recursive=True))
        files = {info.path[len(self.root) :].lstrip("/"): info for info in infos if info.type == FileType.File}
        self.infos = {name: info for name, info in files.items() if not Path(name).name.startswith(".")}

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.infos if name.startswith(f"{prefix}/" if prefix else ""))

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_file(f"{self.root}/{name.removeprefix('./')}") as file:
            return bytes(file.read())

    def open(self, name: str) -> BinaryIO:
        opened = self.filesystem.open_input_file(f"{self.root}/{name.removeprefix('./')}")
        return io.BufferedReader(opened, AHEAD)

    def stamp(self, name: str) -> list[Any]:
        info = self.infos[name.removeprefix("./")]
        return [name, info.size, info.mtime_ns]


def place(where: str | Path) -> Files | None:
    """The folder, or None where there is none."""
    text = str(where).removeprefix("file://")
    if "://" in text:
        bucket = Bucket(text.rstrip("/"))
        return bucket if bucket.infos else None
    path = Path(text).expanduser()
    return Folder(path) if path.is_dir() else None
