"""One process of a machine at a time: the kernel drops the lock of a process that died."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process has the lock; its file goes with it."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        # A holder that left between our open and our lock has unlinked the file we locked.
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
