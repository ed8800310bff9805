"""What two equal runs are compared by."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePath

from rayd.store import Store


def hashes(at: str | Path, pattern: str = "*") -> dict[str, str]:
    """sha256 of every file at a folder or URI whose name fits."""
    store = Store(at)
    return {
        name: hashlib.sha256(store.read(name)).hexdigest() for name in store.list() if PurePath(name).match(pattern)
    }
