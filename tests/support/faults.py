"""Storage that fails: every operation of every Store in this process fails at given rates, drawn from a seed.

with faulty({"eio": 0.05, "503": 0.02}, seed=1) as faults: ...
python -m tests.support.faults '{"rates": {"eio": 0.05}, "seed": 1}' jobs.distill preset=smoke
"""

from __future__ import annotations

import contextlib
import errno
import json
import random
import runpy
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rayd.store import StoreConfig, files, folder

KINDS = ("eio", "estale", "short", "503", "stall", "full")
TRANSIENT = KINDS[:-1]
OPERATIONS = ("read_at", "write", "write_new", "publish", "upload", "download", "sizes", "size", "delete")
WRITES = ("write", "write_new", "publish", "upload")
SERVICE = "When working on key 'k': AWS Error SERVICE_UNAVAILABLE during HeadObject operation: HTTP status 503"


class Faults:
    """Which operation fails, and how often each kind did."""

    def __init__(self, rates: Mapping[str, float], seed: int, stall_s: float) -> None:
        assert set(rates) <= set(KINDS), f"kinds are {KINDS}"
        self.rates, self.stall_s, self.random = dict(rates), stall_s, random.Random(seed)
        self.counts: Counter[str] = Counter()

    def draw(self, operation: str) -> str | None:
        point = self.random.random()
        for kind, rate in self.rates.items():
            point -= rate
            if point < 0:
                fits = (kind != "short" or operation == "read_at") and (kind != "full" or operation in WRITES)
                self.counts[kind if fits else "none"] += 1
                return kind if fits else None
        return None


class FaultyFiles:
    """The files of a Store, of which some operations fail before they do anything (a short read: after)."""

    def __init__(self, inner: Any, faults: Faults) -> None:
        self.inner, self.faults = inner, faults

    def sub(self, name: str) -> FaultyFiles:
        return FaultyFiles(self.inner.sub(name), self.faults)

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self.inner, name)
        if name not in OPERATIONS:
            return operation

        def attempt(*args: Any) -> Any:
            kind = self.faults.draw(name)
            if kind in ("eio", "estale", "full"):
                number = {"eio": errno.EIO, "estale": errno.ESTALE, "full": errno.ENOSPC}[kind]
                raise OSError(number, f"injected {kind}")
            if kind == "503":
                raise OSError(SERVICE)
            if kind == "stall":
                time.sleep(self.faults.stall_s)
            result = operation(*args)
            if kind == "short":
                data, size = result
                return data[: len(data) // 2], size
            return result

        return attempt


@contextlib.contextmanager
def faulty(rates: Mapping[str, float], seed: int = 0, stall_s: float = 0.05) -> Iterator[Faults]:
    """Every Store opened within fails so; those opened before do not."""
    faults, real, local = Faults(rates, seed, stall_s), folder.files_of, folder.Store.local

    def broken(uri: Any) -> tuple[Any, str, StoreConfig]:
        inner, plain, config = real(uri)
        return FaultyFiles(inner, faults), plain, config

    def path(store: Any) -> Any:
        inner = getattr(store.files, "inner", store.files)
        return inner.path if isinstance(inner, files.LocalFiles) else None

    folder.files_of, folder.Store.local = broken, property(path)  # type: ignore[assignment,method-assign]
    try:
        yield faults
    finally:
        folder.files_of, folder.Store.local = real, local  # type: ignore[method-assign]


if __name__ == "__main__":
    settings, module, *words = sys.argv[1:]
    sys.argv = [module, *words]
    with faulty(**json.loads(settings)):
        runpy.run_module(module, run_name="__main__")
