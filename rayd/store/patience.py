"""Which errors of storage are transient, and how long they are waited out."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from rayd.errors import Failed, Refused, Transient, refuse

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_S, LONGEST_S = 0.1, 5.0
"""Seconds before the first repetition, and the most between two; each wait is twice the one before."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TRANSIENT = {
    errno.EIO,
    errno.ESTALE,
    errno.EAGAIN,
    errno.EINTR,
    errno.EBUSY,
    errno.ETIMEDOUT,
    errno.EPIPE,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EREMOTEIO,
}
TRANSIENT_WORDS = re.compile(
    r"SLOW_?DOWN|THROTTL|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|NETWORK_CONNECTION|RequestTimeout|"
    r"HTTP (status|response code):? ?(408|429|5\d\d)|curlCode|timed? ?out|"
    r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED)\b|connection (reset|refused|closed|aborted)",
    re.IGNORECASE,
)
"""How object stores say it, whose errors come without a number."""


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """How long storage is waited for."""

    patience: float = 120.0
    """Seconds for which a transient error (EIO, ESTALE, 5xx, throttling, a timeout) is tried again."""
    connect_timeout: float = 10.0
    """Seconds to connect to an object store."""
    request_timeout: float = 30.0
    """Seconds that one request to an object store may take."""

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise refuse("store.patience", self.patience, "seconds, 0 or more")
        for field in ("connect_timeout", "request_timeout"):
            if not getattr(self, field) > 0:
                raise refuse(f"store.{field}", getattr(self, field), "seconds above 0")


_current = StoreConfig()


def configure(config: StoreConfig) -> None:
    """For every store that this process opens from now on, unless its URI says otherwise."""
    global _current
    _current = config


def current() -> StoreConfig:
    return _current


def is_transient(error: OSError) -> bool:
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if error.errno is not None:
        return error.errno in TRANSIENT
    return not isinstance(error, FileNotFoundError) and TRANSIENT_WORDS.search(str(error)) is not None


def persist(action: Callable[[], T], doing: str, where: str, patience: float) -> T:
    """The action's result; it is repeated while its errors are transient and patience lasts."""
    began, wait = time.monotonic(), FIRST_S
    while True:
        try:
            return action()
        except OSError as error:
            waited = time.monotonic() - began
            if not is_transient(error) or waited + wait > patience:
                raise spoken(error, doing, where, waited) from error
            log.warning("%s: %s failed (%s); trying again in %.1f s", where, doing, first_line(error), wait)
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_S)


@contextlib.contextmanager
def speaking(doing: str, where: str) -> Iterator[None]:
    """Errors of a block that cannot be repeated, in the same words."""
    try:
        yield
    except OSError as error:
        raise spoken(error, doing, where, 0.0) from error


def spoken(error: OSError, doing: str, where: str, waited: float) -> Failed | Refused:
    """A system error with the file and what to do."""
    if isinstance(error, FileNotFoundError):
        return Failed(f"{where}: no such file ({doing} it)")
    if isinstance(error, PermissionError):
        return Refused(f"{where}: no permission ({doing} it)")
    if error.errno in FULL:
        return Failed(
            f"{where}: no room left ({os.strerror(error.errno or 0)}). Nothing committed is lost: "
            "free some room, or raise the limit, and run the same command again"
        )
    if is_transient(error):
        return Transient(
            f"{where}: {doing} failed for {waited:.0f} s: {first_line(error)}. Nothing committed is lost: run the same "
            "command again when the storage is well, or raise store.patience"
        )
    return Failed(f"{where}: {doing} failed: {first_line(error)}")


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
