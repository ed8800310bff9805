"""A folder behind a URI: names appear whole, transient errors are waited out, plans are claimed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rayd.errors import Failed
from rayd.schema import from_json
from rayd.store.files import LocalFiles, files_of
from rayd.store.patience import current, persist, speaking

T = TypeVar("T")


class Store:
    """Names are relative, with `/` between their parts. What must be whole is named by a marker written after it."""

    def __init__(self, uri: str | Path) -> None:
        plain = str(uri).partition("?")[0].rpartition("@")[2]
        self.files, self.uri, self.config = persist(lambda: files_of(uri), "opening", plain, current().patience)
        self.read_bytes = 0
        """Bytes read so far, by whole files and ranges."""

    @property
    def local(self) -> Path | None:
        """The folder, where it is one of this machine's."""
        return self.files.path if isinstance(self.files, LocalFiles) else None

    @property
    def root(self) -> str:
        """The path within the file system."""
        return str(self.files.path) if isinstance(self.files, LocalFiles) else self.files.root

    def sub(self, name: str) -> Store:
        """The folder `name` inside this one."""
        inner = object.__new__(type(self))
        base, question, query = self.uri.partition("?")
        inner.files, inner.uri = self.files.sub(name), f"{base}/{name}{question}{query}"
        inner.config, inner.read_bytes = self.config, 0
        return inner

    # ---- whole files ------------------------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """All of the file or none of it."""
        self._persist("writing", name, lambda: self.files.write(name, data))

    def write_new(self, name: str, data: bytes) -> bool:
        """Write unless the name is taken; whether it was free. One step on local disks and NFS, not on object stores."""
        return self._persist("writing", name, lambda: self.files.write_new(name, data))

    def read(self, name: str) -> bytes:
        return self._read(name, 0, None)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer where the file ends before."""
        return self._read(name, offset, length)

    def _read(self, name: str, offset: int, length: int | None) -> bytes:
        def whole() -> bytes:
            data, size = self.files.read_at(name, offset, length)
            promised = size - offset if length is None else min(length, max(size - offset, 0))
            if len(data) < promised:
                raise TimeoutError(f"{len(data)} of {promised} bytes came")
            return data

        data = self._persist("reading", name, whole)
        self.read_bytes += len(data)
        return data

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, _json(value))

    def read_json(self, name: str) -> Any:
        try:
            return from_json(self.read(name))
        except ValueError as error:
            problem = f"{self.where(name)}: not readable as JSON ({error})"
            raise Failed(f"{problem}; remove it and run what wrote it again") from error

    def facts(self, name: str) -> dict[str, Any]:
        """What a JSON file holds; nothing where there is none."""
        if not self.exists(name):
            return {}
        facts = self.read_json(name)
        if not isinstance(facts, dict):
            raise Failed(f"{self.where(name)}: holds no mapping; remove it and run what wrote it again")
        return facts

    def claim(self, name: str, plan: Mapping[str, Any]) -> list[str]:
        """Leave the plan under this name; where one is there already, the keys (a.b) in which it differs from ours.

        Keys that our plan lacks do not matter.
        """
        data = _json(plan)
        if not self.exists(name) and self.write_new(name, data):
            return []
        return differing(self.read_json(name), json.loads(data))

    # ---- files from and to a local disk -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A path for a temporary file that `publish` can move to `name` in one step; removed if it is not."""
        with speaking("writing", self.where(name)), self.files.scratch(name) as path:
            yield path

    def publish(self, path: Path, name: str) -> None:
        """A finished file out of `scratch`, in one move or one upload."""
        self._persist("writing", name, lambda: self.files.publish(path, name))

    def upload(self, path: str | Path, name: str) -> None:
        """A copy of a local file under `name`."""
        self._persist("writing", name, lambda: self.files.upload(Path(path), name))

    def download(self, name: str, path: str | Path) -> None:
        self._persist("reading", name, lambda: self.files.download(name, Path(path)))

    # ---- what is there ----------------------------------------------------------------------------------------------

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Every file whose name starts with `prefix`, folders within included, and its bytes; sorted by name."""
        folder = prefix.rpartition("/")[0]
        files = self.files.sub(folder) if folder else self.files
        below = self._persist("listing", prefix, files.sizes)
        sizes = {f"{folder}/{name}" if folder else name: size for name, size in below.items()}
        return {name: sizes[name] for name in sorted(sizes) if name.startswith(prefix)}

    def list(self, prefix: str = "") -> list[str]:
        return list(self.sizes(prefix))

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where there is none."""
        return self._persist("looking for", name, lambda: self.files.size(name))

    def exists(self, name: str) -> bool:
        return self.size(name) is not None

    def delete(self, name: str) -> None:
        """Gone afterwards, whether or not it was there."""
        self._persist("deleting", name, lambda: self.files.delete(name))

    def sweep(self) -> int:
        """Remove temporary files of killed writers; only for a folder that nobody is writing to. Returns how many."""
        return self.files.sweep()

    def where(self, name: str) -> str:
        """The name as a person finds it; the URI's query is left out."""
        return f"{self.uri.partition('?')[0]}/{name}"

    def _persist(self, doing: str, name: str, action: Callable[[], T]) -> T:
        return persist(action, doing, self.where(name), self.config.patience)


def differing(there: Mapping[str, Any], plan: Mapping[str, Any], where: str = "") -> list[str]:
    """The keys of a plan, nested ones as a.b, that say otherwise than what is there."""
    keys: list[str] = []
    for key, want in plan.items():
        have = there.get(key)
        if isinstance(want, Mapping) and isinstance(have, Mapping):
            keys += differing(have, want, f"{where}{key}.")
        elif have != want:
            keys.append(f"{where}{key}")
    return keys


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
