"""A folder behind a URI: local disks and NFS by plain system calls, `s3://` and `gs://` by pyarrow's filesystems.

A local write is a temporary file in the same folder, fsync, one rename. An object appears when its upload ends, but a
failed upload may leave a short object behind: what must be whole is named by a marker written after it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayd.errors import Failed, Refused, refuse

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TEMPORARY = ".tmp"
CHUNK = 8 * 2**20


def within(uri: str, name: str) -> str:
    """The URI of the file or folder `name` in that folder; a query stays at the end."""
    base, question, query = uri.partition("?")
    return f"{base.rstrip('/')}/{name}{question}{query}"


class Store:
    """Names are relative, with `/` between their parts."""

    def __init__(self, uri: str | Path) -> None:
        text = str(uri).removeprefix("file://")
        self.read_bytes = 0
        """Bytes read so far, by whole files and ranges."""
        self.local: Path | None = None
        self._filesystem: Any = None
        if "://" not in text:
            self.local = Path(os.path.abspath(os.path.expanduser(text)))
            self.uri, self.root = str(self.local), str(self.local)
            return
        import pyarrow
        from pyarrow.fs import FileSystem

        base, question, query = text.partition("?")
        self.uri = base.rstrip("/") + question + query
        try:
            self._filesystem, self.root = FileSystem.from_uri(self.uri)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
            raise refuse("uri", text, "a path, file://, s3:// or gs://", str(error).splitlines()[0]) from error

    def sub(self, name: str) -> Store:
        """The folder `name` inside this one."""
        return Store(within(self.uri, name))

    # ---- whole files ------------------------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """All of the file or none of it."""
        with self._speaking("writing", name):
            if self.local is None:
                with self._filesystem.open_output_stream(self._path(name)) as stream:
                    stream.write(data)
                return
            with self.scratch(name) as temporary:
                temporary.write_bytes(data)
                self._move(temporary, name)

    def read(self, name: str) -> bytes:
        with self._speaking("reading", name):
            if self.local is not None:
                data = (self.local / name).read_bytes()
            else:
                with self._filesystem.open_input_file(self._path(name)) as file:
                    data = bytes(file.read())
        self.read_bytes += len(data)
        return data

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer where the file ends before."""
        with self._speaking("reading", name):
            if self.local is not None:
                with open(self.local / name, "rb", buffering=0) as file:
                    data = os.pread(file.fileno(), length, offset)
            else:
                with self._filesystem.open_input_file(self._path(name)) as file:
                    data = bytes(file.read_at(length, offset))
        self.read_bytes += len(data)
        return data

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            told = f"{self.where(name)}: not readable as JSON ({error})"
            raise Failed(f"{told}; remove it and run what wrote it again") from error

    def facts(self, name: str) -> dict[str, Any]:
        """What a JSON file holds; nothing where there is none."""
        return dict(self.read_json(name)) if self.exists(name) else {}

    # ---- files from and to a local disk -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A path for a temporary file that `publish` can move to `name` in one step; removed if it is not."""
        hidden = f".{Path(name).name}.{uuid.uuid4().hex[:12]}{TEMPORARY}"
        with self._speaking("writing", name):
            folder = (self.local / name).parent if self.local is not None else Path(tempfile.gettempdir())
            folder.mkdir(parents=True, exist_ok=True)
            try:
                yield folder / hidden
            finally:
                (folder / hidden).unlink(missing_ok=True)

    def publish(self, path: Path, name: str) -> None:
        """A finished file out of `scratch`, in one move or one upload."""
        with self._speaking("writing", name):
            if self.local is not None:
                self._move(path, name)
            else:
                self._send(path, name)

    def upload(self, path: str | Path, name: str) -> None:
        """A copy of a local file under `name`."""
        if self.local is None:
            with self._speaking("writing", name):
                self._send(Path(path), name)
            return
        with self.scratch(name) as temporary:
            shutil.copyfile(path, temporary)
            self._move(temporary, name)

    def download(self, name: str, path: str | Path) -> None:
        with self._speaking("reading", name):
            if self.local is not None:
                shutil.copyfile(self.local / name, path)
                return
            with self._filesystem.open_input_stream(self._path(name)) as stream, open(path, "wb") as file:
                while chunk := stream.read(CHUNK):
                    file.write(chunk)

    # ---- what is there ----------------------------------------------------------------------------------------------

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Every file whose name starts with `prefix`, folders within included, and its bytes; sorted by name."""
        if self.local is not None:
            found = {path.relative_to(self.local).as_posix(): size for path, size in _files(self.local)}
        else:
            from pyarrow.fs import FileSelector, FileType

            with self._speaking("listing", prefix):
                there = self._filesystem.get_file_info(FileSelector(self.root, allow_not_found=True, recursive=True))
            found = {info.path[len(self.root) :].lstrip("/"): info.size for info in there if info.type == FileType.File}
        return {name: found[name] for name in sorted(found) if name.startswith(prefix)}

    def list(self, prefix: str = "") -> list[str]:
        return list(self.sizes(prefix))

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where there is none."""
        if self.local is not None:
            path = self.local / name
            return path.stat().st_size if path.is_file() else None
        with self._speaking("asking for", name):
            info = self._filesystem.get_file_info(self._path(name))
        return int(info.size) if info.is_file else None

    def exists(self, name: str) -> bool:
        return self.size(name) is not None

    def delete(self, name: str) -> None:
        """Gone afterwards, whether or not it was there."""
        if self.local is not None:
            (self.local / name).unlink(missing_ok=True)
        elif self.exists(name):
            self._filesystem.delete_file(self._path(name))

    def sweep(self) -> int:
        """Remove what killed writers left behind; only for a folder that nobody is writing to. Returns how many."""
        left = [] if self.local is None else [p for p in self.local.glob(f".*{TEMPORARY}") if p.is_file()]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    def where(self, name: str) -> str:
        """The name as a person finds it."""
        base, _, _ = self.uri.partition("?")
        return f"{base}/{name}"

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _move(self, temporary: Path, name: str) -> None:
        assert self.local is not None
        target = self.local / name
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _send(self, path: Path, name: str) -> None:
        with open(path, "rb") as file, self._filesystem.open_output_stream(self._path(name)) as stream:
            while chunk := file.read(CHUNK):
                stream.write(chunk)

    @contextlib.contextmanager
    def _speaking(self, doing: str, name: str) -> Iterator[None]:
        """System errors, said with the file and what to do."""
        try:
            yield
        except FileNotFoundError as error:
            raise Failed(f"{self.where(name)}: no such file ({doing} it)") from error
        except PermissionError as error:
            raise Refused(f"{self.where(name)}: no permission ({doing} it)") from error
        except OSError as error:
            if error.errno in FULL:
                raise Failed(
                    f"{self.where(name)}: no room left ({os.strerror(error.errno or 0)}). Nothing committed is lost: "
                    "free some room, or raise the limit, and run the same command again"
                ) from error
            raise Failed(f"{self.where(name)}: {doing} failed: {str(error).splitlines()[0][:300]}") from error


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Files below a folder, without anybody's temporary ones."""
    if not folder.is_dir():
        return
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path))
        elif not (entry.name.startswith(".") and entry.name.endswith(TEMPORARY)):
            yield Path(entry.path), entry.stat().st_size
