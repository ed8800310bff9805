"""The cache folder (`$RAYD_CACHE`, or ~/.cache/rayd): each entry is built by one process and appears whole."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rayd.errors import Failed
from rayd.store.lock import locked

log = logging.getLogger(__name__)

POLL_S, REMIND_S, STALLED_S = 0.1, 30.0, 600.0
"""Seconds between two looks at a lock, between two lines in the log, and after which a builder counts as hung."""


def cache_folder() -> Path:
    return Path(os.environ.get("RAYD_CACHE") or Path.home() / ".cache" / "rayd").expanduser()


def build(path: Path, whole: Callable[[Path], bool], fill: Callable[[Path], None]) -> None:
    """Make sure that `path` is there and `whole`: `fill` writes a draft, which one rename publishes.

    Other processes wait for the builder and use what it made. The kernel drops the lock of a process that died; its
    draft is removed by the next one.
    """
    if whole(path):
        return
    with _speaking(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _waiting(path):
            if whole(path):
                return
            _sweep(path.parent)
            draft = _draft(path)
            _remove(draft)
            try:
                fill(draft)
                _remove(path)
                os.rename(draft, path)
            finally:
                _remove(draft)


@contextlib.contextmanager
def _speaking(path: Path) -> Iterator[None]:
    """Errors of the system, with what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why, do = "no room left", "Free some, or set RAYD_CACHE to a larger disk"
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            why, do = (
                f"may not be written, or its data not read ({error})",
                "Allow it, or set RAYD_CACHE to another folder",
            )
        else:
            why, do = f"could not be built ({error})", "Nothing half-built is kept: see to the disk"
        raise Failed(f"{path}: {why}. {do}, and run the same command again") from error


def save_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """A .npy file under exactly this name."""
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _draft(path: Path) -> Path:
    return path.parent / f".{path.name}.draft"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _lock(path: Path) -> contextlib.AbstractContextManager[bool]:
    return locked(path.parent / f".{path.name}.lock")


@contextlib.contextmanager
def _waiting(path: Path) -> Iterator[None]:
    began = reminded = time.monotonic()
    while True:
        with _lock(path) as ours:
            if ours:
                yield
                return
        now = time.monotonic()
        if now - reminded > REMIND_S:
            reminded = now
            log.info("%s: waiting %.0f s for the process that builds it", path, now - began)
        if now - began > STALLED_S and time.time() - _last_change(_draft(path)) > STALLED_S:
            raise Failed(f"{path}: the process that builds it has written nothing for {STALLED_S:.0f} s; end it")
        time.sleep(POLL_S)


def _last_change(draft: Path) -> float:
    newest = 0.0
    with contextlib.suppress(FileNotFoundError):
        newest = max(entry.stat().st_mtime for entry in [draft, *(draft.iterdir() if draft.is_dir() else ())])
    return newest


def _sweep(folder: Path) -> None:
    """Remove drafts whose builders are dead."""
    for draft in folder.glob(".*.draft"):
        with _lock(folder / draft.name[1 : -len(".draft")]) as ours:
            if ours:
                _remove(draft)
