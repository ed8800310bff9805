"""The one writer of a folder: a record with a heartbeat, so that a second writer is refused and a dead one forgotten.

Every writer leaves a file of its own under lease/ and then looks for others: of two that come at once the one that
looks last sees the other, whatever the file system. No conditional write is needed, which object stores lack.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Any

from rayd.errors import Failed, Refused
from rayd.store.folder import Store

log = logging.getLogger(__name__)

FOLDER = "lease/"
TRIES = 3
"""Of two writers that come in the same instant both step back, and come again a moment apart."""


class Lease:
    """`with Lease(store): ...` holds the folder; `check()` before a commit says whether it is still ours."""

    def __init__(self, store: Store, beat: float = 5.0, expires: float = 30.0) -> None:
        self.store, self.beat, self.expires = store, beat, expires
        """Seconds between two heartbeats; seconds of silence after which a writer of another machine is examined."""
        self.id = uuid.uuid4().hex[:12]
        self.name = f"{FOLDER}{self.id}.json"
        self.record: dict[str, Any] = {**_this_process(), "since": time.time(), "beat": beat, "count": 0}
        self.lost = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        for attempt in range(TRIES):
            holder = self._holder()
            if holder is None:
                self._write()
                holder = self._holder()
                if holder is None:
                    break
                self.store.delete(self.name)
                if attempt < TRIES - 1:
                    time.sleep((1 + int(self.id[:2], 16) / 64) * min(self.beat, 1.0))
                    continue
            raise self._refusal(holder)
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if not self.lost:
            self.store.delete(self.name)

    def check(self) -> None:
        """Refuse to go on once the lease is lost: somebody else may be writing."""
        if self.lost:
            raise Failed(f"{self.store.where('')}: this process lost the folder: {self.lost}; nothing more was written")

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _holder(self) -> dict[str, Any] | None:
        """The record of another living writer; records of dead ones are removed."""
        for name in self.store.list(FOLDER):
            if name == self.name:
                continue
            record = self._read(name)
            if record is not None and self._lives(name, record):
                return record
            self.store.delete(name)
        return None

    def _read(self, name: str) -> dict[str, Any] | None:
        """None where its writer has just gone, or left no whole record."""
        if not self.store.exists(name):
            return None
        try:
            record = self.store.read_json(name)
        except Failed:
            return None
        return record if isinstance(record, dict) and {"host", "since", "time"} <= set(record) else None

    def _lives(self, name: str, record: dict[str, Any]) -> bool:
        if record["host"] == self.record["host"]:
            return bool(_started(record["process"]) == record["started"])
        if abs(time.time() - record["time"]) < self.expires:
            return True
        time.sleep(2 * float(record["beat"]))  # clocks differ: what counts is whether it still beats
        later = self._read(name)
        return later is not None and bool(later["count"] != record["count"])

    def _write(self) -> None:
        self.record |= {"time": time.time(), "count": self.record["count"] + 1}
        self.store.write_json(self.name, self.record)

    def _beat(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(self.beat):
            try:
                if not self.store.exists(self.name):
                    self.lost = "another writer took it for dead"
                    return
                self._write()
                last = time.monotonic()
            except (Failed, Refused) as error:
                log.warning("lease: no heartbeat: %s", error)
            if time.monotonic() - last > self.expires:
                self.lost = f"no heartbeat could be written for {self.expires:.0f} s"
                return

    def _refusal(self, holder: dict[str, Any]) -> Refused:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
        age = max(0.0, time.time() - holder["time"])
        elsewhere = holder["host"] != self.record["host"]
        dead = f"; one that is silent for {self.expires:.0f} s is taken for dead" if elsewhere else ""
        return Refused(
            f"{self.store.where('')}: is being written by {holder['owner']} on {holder['machine']} (process "
            f"{holder['process']}) since {since}, last heard of {age:.0f} s ago; wait for it, end it, or give another folder"
            f"{dead}"
        )


def _this_process() -> dict[str, Any]:
    space = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return {
        "owner": _user(),
        "machine": socket.gethostname(),
        "host": f"{socket.gethostname()} {space}",
        "process": os.getpid(),
        "started": _started(os.getpid()),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return f"user {os.getuid()}"


def _started(process: int) -> str:
    """When a process of this machine started, in the kernel's ticks; empty where there is none."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return "alive" if not os.path.isdir("/proc/self") else ""
