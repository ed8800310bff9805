"""One writer of a folder at a time."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rayd.errors import Failed, Refused
from rayd.store import Lease, Store
from rayd.store import lease as lease_module

HOLD = """
import sys, time
from rayd.store import Lease, Store
with Lease(Store(sys.argv[1]), beat=0.2):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_with_who_and_since_when(store: Store) -> None:
    with Lease(store, beat=0.1) as first:
        began = time.monotonic()
        with pytest.raises(
            Refused, match=rf"is being written by .* \(process {os.getpid()}\) since 20\d\d-.*last heard of"
        ):
            Lease(store).__enter__()
        assert time.monotonic() - began < 10
        time.sleep(0.4)
        assert store.read_json(first.name)["count"] > 1, "it beats"
        first.check()
    assert store.list("lease/") == []
    with Lease(store):
        pass


def test_a_dead_writers_lease_is_forgotten_at_once_on_its_machine(tmp_path: Path) -> None:
    worker = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert worker.stdout is not None and worker.stdout.readline() == b"held\n"
        with pytest.raises(Refused, match=f"process {worker.pid}"):
            Lease(Store(tmp_path)).__enter__()
    finally:
        worker.kill()
        worker.wait()
    assert len(Store(tmp_path).list("lease/")) == 1
    with Lease(Store(tmp_path)):
        assert len(Store(tmp_path).list("lease/")) == 1


def test_a_silent_writer_of_another_machine_expires_and_a_slow_clock_does_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = {"owner": "ann", "machine": "far", "host": "far 1", "process": 1, "started": "1", "since": 0, "beat": 0.2}
    store.write_json("lease/far.json", record | {"time": time.time(), "count": 5})
    with pytest.raises(Refused, match=r"by ann on far .* one that is silent for 60 s is taken for dead"):
        Lease(store, expires=60).__enter__()
    store.write_json("lease/far.json", record | {"time": time.time() - 100, "count": 5})
    with Lease(store, expires=60):
        assert store.list("lease/far") == [], "100 s of silence, and no beat while it was watched"
    store.write_json("lease/far.json", record | {"time": time.time() - 100, "count": 5})
    beats = threading.Timer(0.1, store.write_json, ("lease/far.json", record | {"time": time.time() - 100, "count": 6}))
    beats.start()
    with pytest.raises(Refused, match=r"by ann on far .* one that is silent for 60 s is taken for dead"):
        Lease(store, expires=60).__enter__()
    beats.join()


def test_a_lease_that_was_taken_says_so(tmp_path: Path) -> None:
    with Lease(Store(tmp_path), beat=0.05) as lease:
        Store(tmp_path).delete(lease.name)
        time.sleep(0.3)
        with pytest.raises(Failed, match="another writer took it for dead"):
            lease.check()


def _contend(folder: str, start: Any, results: Any) -> None:
    start.wait()
    try:
        with Lease(Store(folder), beat=0.2):
            results.put((time.monotonic(), "in"))
            time.sleep(0.3)
            results.put((time.monotonic(), "out"))
    except Refused:
        results.put((time.monotonic(), "refused"))


def test_never_two_writers_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    workers = [context.Process(target=_contend, args=(str(tmp_path), start, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    time.sleep(1)
    start.set()
    for worker in workers:
        worker.join(60)
    events = []
    while not results.empty():
        events.append(results.get())
    inside = 0
    for _, what in sorted(events):
        inside += {"in": 1, "out": -1, "refused": 0}[what]
        assert inside in (0, 1)
    assert len([what for _, what in events if what != "out"]) == 4
    assert lease_module.FOLDER == "lease/" and Store(tmp_path).list() == []
