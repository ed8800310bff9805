"""The file systems under a Store: what one operation is, tried once. Errors are the system's own (OSError).

A local write is a temporary file in the same folder, fsync, one rename. An object appears when its upload ends, but a
failed upload may leave a short object behind. pyarrow offers no conditional write of objects (If-None-Match), so
`write_new` is atomic on local disks and NFS only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from rayd.errors import Transient, refuse
from rayd.store.lock import locked
from rayd.store.patience import StoreConfig, current

TEMPORARY = ".tmp"
DRAFT = ".rayd-"
"""Begins the name of a temporary file in the machine's own folder, which is everybody's."""
CHUNK = 8 * 2**20
OURS = ("patience", "connect_timeout", "request_timeout")
"""Settings of a StoreConfig that a URI may carry in its query."""
S3_KEYS = ("region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion")


def within(uri: str, name: str) -> str:
    """The URI of the file or folder `name` in that folder; a query stays at the end."""
    base, question, query = uri.partition("?")
    return f"{base.rstrip('/')}/{name}{question}{query}"


def beside(uri: str, name: str) -> str:
    """The URI of `name` in the folder that holds this one; in it, where that is a bucket."""
    base, question, query = uri.partition("?")
    parent, slash, _ = base.rstrip("/").rpartition("/")
    return within(uri, name) if parent.endswith("/") else f"{parent}{slash}{name}{question}{query}"


def open_filesystem(uri: str, field: str = "uri") -> tuple[Any, str, StoreConfig]:
    """pyarrow's file system of a URI, the path in it, and how long it is waited for."""
    import pyarrow
    from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem, resolve_s3_region

    parts = urlsplit(uri)
    base = uri.partition("?")[0]
    shown = f"{parts.scheme}://{base.rpartition('@' if '@' in base else '://')[2]}"
    anonymous = parts.scheme != "s3" and parts.netloc.startswith("anonymous@")
    # A secret may hold a slash, which ends the host: no bucket's name has a colon.
    if not anonymous and ("@" in parts.netloc or (":" in parts.netloc and parts.scheme in ("s3", "gs", "gcs"))):
        raise refuse(
            field,
            shown,
            "a URI without a user name or password",
            "give credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, as a profile, or by the machine's role",
        )
    query = dict(parse_qsl(parts.query))
    config = _configured(query, field)
    try:
        if parts.scheme != "s3":
            rest = {key: text for key, text in query.items() if key not in OURS}
            filesystem, root = FileSystem.from_uri(base + (f"?{urlencode(rest)}" if rest else ""))
            return filesystem, root, config
        unknown = [key for key in query if key not in (*S3_KEYS, *OURS)]
        if unknown:
            raise refuse(f"{field}: {unknown[0]}", "(not shown)", " | ".join((*S3_KEYS, *OURS)), f"in {shown}?KEY=...")
        region = query.get("region") or os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")
        if region is None and "endpoint_override" not in query:
            region = resolve_s3_region(parts.netloc)
        flags = {key: query[key] == "true" for key in S3_KEYS[3:] if key in query}
        filesystem = S3FileSystem(
            region=region,
            scheme=query.get("scheme", "https"),
            endpoint_override=query.get("endpoint_override"),
            connect_timeout=config.connect_timeout,
            request_timeout=config.request_timeout,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=2),
            **flags,
        )
        return filesystem, f"{parts.netloc}{parts.path}".rstrip("/"), config
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise refuse(field, shown, "a path, file://, s3:// or gs://", str(error).splitlines()[0]) from error


def _configured(query: dict[str, str], field: str) -> StoreConfig:
    settings = {key: getattr(current(), key) for key in OURS}
    for key in OURS:
        if key in query:
            try:
                settings[key] = float(query[key])
            except ValueError as error:
                raise refuse(f"{field}: {key}", query[key], "seconds") from error
    return StoreConfig(**settings)


class LocalFiles:
    """A folder of this machine, or one that it has mounted."""

    def __init__(self, root: Path) -> None:
        self.path = root

    def sub(self, name: str) -> LocalFiles:
        return LocalFiles(self.path / name)

    def read_at(self, name: str, offset: int, length: int | None) -> tuple[bytes, int]:
        """Bytes from there (to the end where length is None), and the size of the whole file."""
        with open(self.path / name, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            left, pieces = max(size - offset, 0) if length is None else length, list[bytes]()
            while left and (piece := os.pread(file.fileno(), left, offset)):  # the kernel gives 2 GiB at a time
                pieces.append(piece)
                left, offset = left - len(piece), offset + len(piece)
            return b"".join(pieces), size

    def write(self, name: str, data: bytes) -> None:
        with self.scratch(name) as temporary:
            temporary.write_bytes(data)
            try:
                self.publish(temporary, name)
            except FileNotFoundError:  # another writer of the folder has ended, and swept it
                temporary.write_bytes(data)
                self.publish(temporary, name)

    def write_new(self, name: str, data: bytes) -> bool:
        """Write unless the name is taken, in one step; whether it was free."""
        with self.scratch(name) as temporary:
            temporary.write_bytes(data)
            _flush(temporary)
            try:
                os.link(temporary, self.path / name)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) or (self.path / name).exists():
                    raise
                os.replace(temporary, self.path / name)  # a file system without hard links
        return True

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        folder = (self.path / name).parent
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{Path(name).name}.{uuid.uuid4().hex[:12]}{TEMPORARY}"
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def sweep(self) -> int:
        """Remove the folder's temporary files, a living writer's included; how many there were."""
        found = [path for path in self.path.glob(f".*{TEMPORARY}") if path.is_file()]
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    def publish(self, path: Path, name: str) -> None:
        """Move a finished file to its name; may be repeated after an error."""
        target = self.path / name
        if path.exists() or not target.exists():
            try:
                _flush(path)
            except FileNotFoundError:
                raise
            except OSError as error:  # a second fsync would report success without the lost pages
                raise Transient(f"{target}: fsync failed ({error}); run the same command again") from error
            os.replace(path, target)
        _flush(target.parent)

    def upload(self, path: Path, name: str) -> None:
        with self.scratch(name) as temporary:
            shutil.copyfile(path, temporary)
            self.publish(temporary, name)

    def download(self, name: str, path: Path) -> None:
        shutil.copyfile(self.path / name, path)

    def sizes(self) -> dict[str, int]:
        return {path.relative_to(self.path).as_posix(): size for path, size in _walk(self.path)}

    def size(self, name: str) -> int | None:
        path = self.path / name
        return path.stat().st_size if path.is_file() else None

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)


class RemoteFiles:
    """A folder of an object store."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self.filesystem, self.root = filesystem, root

    def sub(self, name: str) -> RemoteFiles:
        return RemoteFiles(self.filesystem, f"{self.root}/{name}")

    def read_at(self, name: str, offset: int, length: int | None) -> tuple[bytes, int]:
        with self.filesystem.open_input_file(f"{self.root}/{name}") as file:
            size = int(file.size())
            left = max(size - offset, 0)
            return bytes(file.read_at(left if length is None else min(length, left), min(offset, size))), size

    def write(self, name: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(f"{self.root}/{name}") as stream:
            stream.write(data)

    def write_new(self, name: str, data: bytes) -> bool:
        """Write unless the name is taken; two writers in the same instant may both succeed, the last one counts."""
        if self.size(name) is not None:
            return False
        self.write(name, data)
        return self.read_at(name, 0, None)[0] == data

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        self.sweep()
        while True:  # a sweep by another process, between a draft's creation and its lock, takes it: then a new one
            temporary = Path(tempfile.gettempdir()) / f"{DRAFT}{Path(name).name}.{uuid.uuid4().hex[:12]}{TEMPORARY}"
            with locked(temporary) as held:
                if held:
                    yield temporary
                    return

    def sweep(self) -> int:
        """Remove drafts on this machine that no living process holds, whichever store they were for; how many."""
        swept = 0
        for path in Path(tempfile.gettempdir()).glob(f"{DRAFT}*{TEMPORARY}"):
            with contextlib.suppress(OSError), open(path, "rb") as file:  # held, gone meanwhile, or another user's
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()  # while it is locked: its writer, if one is just opening it, sees that it is gone
                swept += 1
        return swept

    def publish(self, path: Path, name: str) -> None:
        with open(path, "rb") as file, self.filesystem.open_output_stream(f"{self.root}/{name}") as stream:
            while chunk := file.read(CHUNK):
                stream.write(chunk)

    upload = publish

    def download(self, name: str, path: Path) -> None:
        with self.filesystem.open_input_stream(f"{self.root}/{name}") as stream, open(path, "wb") as file:
            while chunk := stream.read(CHUNK):
                file.write(chunk)

    def sizes(self) -> dict[str, int]:
        from pyarrow.fs import FileSelector, FileType

        infos = self.filesystem.get_file_info(FileSelector(self.root, allow_not_found=True, recursive=True))
        return {info.path[len(self.root) :].lstrip("/"): info.size for info in infos if info.type == FileType.File}

    def size(self, name: str) -> int | None:
        info = self.filesystem.get_file_info(f"{self.root}/{name}")
        return int(info.size) if info.is_file else None

    def delete(self, name: str) -> None:
        if self.size(name) is not None:
            self.filesystem.delete_file(f"{self.root}/{name}")


Files = LocalFiles | RemoteFiles


def files_of(uri: str | Path) -> tuple[Files, str, StoreConfig]:
    """The files behind a URI, the URI in its plain form, and how long they are waited for."""
    text = str(uri).removeprefix("file://")
    if "://" not in text:
        folder = Path(os.path.abspath(os.path.expanduser(text)))
        return LocalFiles(folder), str(folder), current()
    filesystem, root, config = open_filesystem(text)
    base, question, query = text.partition("?")
    return RemoteFiles(filesystem, root), base.rstrip("/") + question + query, config


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _walk(folder: Path) -> Iterator[tuple[Path, int]]:
    """Files below a folder, without anybody's temporary ones and those that another process deletes meanwhile."""
    if not folder.is_dir():
        return
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif not (entry.name.startswith(".") and entry.name.endswith(TEMPORARY)):
            with contextlib.suppress(FileNotFoundError):
                yield Path(entry.path), entry.stat().st_size
