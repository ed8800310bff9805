"""A folder behind a URI: whole names, transient errors waited out, plans claimed, one writer."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rayd.errors import Failed, Refused, Transient
from rayd.store import Lease, Store, StoreConfig, configure, differing, within
from rayd.store import lease as lease_module
from rayd.store.files import LocalFiles
from rayd.store.patience import is_transient
from tests.support.faults import TRANSIENT, faulty
from tests.support.limits import file_size_limit
from tests.support.loopback import s3_server
from tests.support.proxy import faulty_proxy


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(tmp_path / "place")
    return Store(request.getfixturevalue("bucket")).sub(tmp_path.name)


def test_files_come_back_as_they_went(store: Store, tmp_path: Path) -> None:
    store.write("a.bin", b"0123456789")
    store.sub("inner").write_json("b.json", {"x": [1, 2]})
    assert store.read("a.bin") == b"0123456789"
    assert store.read_range("a.bin", 3, 4) == b"3456"
    assert store.read_bytes == 14
    assert store.sizes() == {"a.bin": 10, "inner/b.json": store.size("inner/b.json")}
    assert store.sub("inner").read_json("b.json") == {"x": [1, 2]}
    assert store.list("inner") == ["inner/b.json"]
    assert store.exists("a.bin") and not store.exists("c")
    local = tmp_path / "up"
    local.write_bytes(b"up")
    store.upload(local, "c")
    store.download("c", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == b"up" and local.exists()
    store.delete("c")
    store.delete("c")
    assert not store.exists("c")


def test_a_scratch_file_is_seen_only_once_published(store: Store) -> None:
    with store.scratch("big.tar") as path:
        path.write_bytes(b"whole")
        assert store.list() == []
        store.publish(path, "big.tar")
    assert store.read("big.tar") == b"whole"
    with pytest.raises(ValueError), store.scratch("big.tar") as path:
        path.write_bytes(b"half")
        raise ValueError
    assert store.read("big.tar") == b"whole" and not path.exists()


def test_what_comes_in_pieces_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux hands out 2 GiB at a time."""
    store, pread = Store(tmp_path), os.pread
    store.write("a.bin", b"0123456789")
    monkeypatch.setattr(os, "pread", lambda file, length, offset: pread(file, min(length, 3), offset))
    assert store.read("a.bin") == b"0123456789"
    assert store.read_range("a.bin", 2, 7) == b"2345678" and store.read_range("a.bin", 8, 7) == b"89"


def test_leftovers_of_killed_writers_are_hidden_and_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / ".experts-00000.tar.abc.tmp").write_bytes(b"left")
    assert store.list() == []
    assert store.sweep() == 1 and list(tmp_path.iterdir()) == []


def test_drafts_of_killed_processes_are_swept_and_those_of_living_ones_are_not(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is meant for an object store is first written to a folder that all processes of a machine share."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / ".of-another-program.tmp").touch()
    script = (
        "import sys, time\nfrom rayd.store import Store\nwith Store(sys.argv[1]).scratch('a.tar') as path:\n"
        "    path.write_bytes(b'part')\n    print(path, flush=True)\n    time.sleep(600)"
    )
    command = [sys.executable, "-c", script, bucket]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)})
        for _ in range(2)
    ]
    try:
        dead, living = (Path(child.stdout.readline().strip()) for child in children if child.stdout)
        assert dead.parent == living.parent == tmp_path and Store(bucket).sweep() == 0
        children[0].kill()
        children[0].wait()
        assert Store(bucket).sweep() == 1 and not dead.exists() and living.read_bytes() == b"part"
        children[1].kill()
        children[1].wait()
        with Store(bucket).scratch("a.tar") as path:
            assert not living.exists(), "the next draft sweeps, too"
        assert not path.exists() and [path.name for path in tmp_path.iterdir()] == [".of-another-program.tmp"]
    finally:
        for child in children:
            child.kill()


def test_a_draft_swept_before_it_is_locked_gives_way_to_another(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    flock, swept = fcntl.flock, []

    def meanwhile(file: Any, operation: int) -> None:
        if not swept:
            swept.append(0)
            swept.append(Store(bucket).sweep())
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    with Store(bucket).scratch("a.tar") as path:
        assert swept == [0, 1] and path.exists() and Store(bucket).sweep() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_write_survives_a_sweep_by_a_writer_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, publish, swept = Store(tmp_path), LocalFiles.publish, []

    def meanwhile(files: LocalFiles, path: Path, name: str) -> None:
        if not swept:
            swept.append(Store(tmp_path).sweep())
        publish(files, path, name)

    monkeypatch.setattr(LocalFiles, "publish", meanwhile)
    store.write("a", b"a")
    assert swept == [1] and store.read("a") == b"a" and store.list() == ["a"]


def test_errors_say_the_file_and_what_to_do(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"nothing\.bin"):
        store.read("nothing.bin")
    store.write("bad.json", b"{")
    with pytest.raises(Failed, match=r"bad\.json.*not readable as JSON"):
        store.read_json("bad.json")
    with pytest.raises(Refused, match="a path, file://, s3:// or gs://"):
        Store("ftp://host/folder")


def test_a_full_disk_says_so_and_leaves_the_old_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("a", b"old")
    with file_size_limit(1000), pytest.raises(Failed, match=r"/a: no room left.*Nothing committed is lost"):
        store.write("a", b"n" * 5000)
    assert store.read("a") == b"old" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_query_stays_at_the_end() -> None:
    assert within("runs/a/", "experts") == "runs/a/experts"
    assert within("s3://bucket/run?region=x&scheme=http", "experts") == "s3://bucket/run/experts?region=x&scheme=http"


# ---- patience -----------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient() -> Iterator[None]:
    configure(StoreConfig(patience=0.5))
    yield
    configure(StoreConfig())


@pytest.mark.parametrize("kind", TRANSIENT)
def test_transient_errors_change_nothing_but_time(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayd.store.patience.FIRST_S", 0.001)
    with faulty({kind: 0.3}, seed=3, stall_s=0.001) as faults:
        store = Store(tmp_path / "place").sub("run")
        for i in range(20):
            store.write(f"{i}.bin", bytes([i]) * 100)
            with store.scratch(f"{i}.tar") as path:
                path.write_bytes(b"tar")
                store.publish(path, f"{i}.tar")
        for i in range(20):
            assert (
                store.read(f"{i}.bin") == bytes([i]) * 100 and store.read_range(f"{i}.bin", 90, 50) == bytes([i]) * 10
            )
            assert store.size(f"{i}.tar") == 3
        store.delete("0.bin")
        assert len(store.list()) == 39
    assert faults.counts[kind] > 5


def test_what_lasts_longer_than_patience_is_said_to_be_transient(impatient: None, tmp_path: Path) -> None:
    with faulty({"eio": 1.0}):
        store = Store(tmp_path)
        began = time.monotonic()
        with pytest.raises(Transient, match=r"a\.bin: writing failed for .*store\.patience"):
            store.write("a.bin", b"x")
        assert 0.1 < time.monotonic() - began < 2
    with faulty({"full": 1.0}) as faults:
        store = Store(tmp_path)
        with pytest.raises(Failed, match=r"a\.bin: no room left") as full:
            store.write("a.bin", b"x")
        assert not isinstance(full.value, Transient) and faults.counts["full"] == 1, "final ones are not tried again"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (OSError(errno.EIO, "x"), True),
        (OSError(errno.ESTALE, "x"), True),
        (TimeoutError("x"), True),
        (ConnectionResetError("x"), True),
        (OSError("AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate."), True),
        (OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body."), True),
        (OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached"), True),
        (OSError("google::cloud::Status(UNAVAILABLE: try again)"), True),
        (OSError("AWS Error ACCESS_DENIED during GetObject operation: Access Denied."), False),
        (OSError("AWS Error NO_SUCH_BUCKET during PutObject operation"), False),
        (OSError(errno.ENOSPC, "x"), False),
        (OSError(errno.EROFS, "x"), False),
        (FileNotFoundError("b/request timed out"), False),
    ],
)
def test_which_errors_are_transient(error: OSError, transient: bool) -> None:
    assert is_transient(error) is transient


def test_settings_travel_with_the_uri_and_are_checked(bucket: str) -> None:
    store = Store(f"{bucket}&patience=7&request_timeout=3").sub("deep")
    assert store.config == StoreConfig(patience=7, request_timeout=3) and "patience=7" in store.uri
    store.write("x", b"1")
    assert store.read("x") == b"1"
    with pytest.raises(Refused, match=r"patience=long.*seconds"):
        Store(f"{bucket}&patience=long")
    with pytest.raises(Refused, match=r"store.request_timeout=0"):
        StoreConfig(request_timeout=0)


def test_a_server_that_drops_stalls_and_answers_503(bucket: str) -> None:
    rates = {"drop": 0.12, "503": 0.12, "cut": 0.1, "stall": 0.02}
    with faulty_proxy(f"{bucket}&patience=60&request_timeout=1&connect_timeout=1", rates, seed=2, stall_s=1.5) as (
        uri,
        proxy,
    ):
        store = Store(uri).sub("proxied")
        data = os.urandom(200_000)
        for i in range(6):
            store.write(f"{i}", data)
            assert store.read(f"{i}") == data and store.read_range(f"{i}", 1000, 10) == data[1000:1010]
        assert store.sizes() == {name: len(data) for name in map(str, range(6))}
        store.delete("0")
        assert not store.exists("0")
    assert all(proxy.counts[kind] for kind in ("drop", "503", "cut")), proxy.counts


def test_a_dead_endpoint_costs_patience_and_no_more() -> None:
    store = Store(
        "s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1&patience=1&connect_timeout=1"
    )
    began = time.monotonic()
    with pytest.raises(Transient, match=r"s3://bucket/x/a: looking for failed"):
        store.exists("a")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("field", ["uri", "data.path"])
def test_credentials_in_a_uri_are_refused_and_never_shown(field: str) -> None:
    from rayd.data.sources.formats import place

    for uri in (
        "s3://KEYID:HU/SH@bucket/x?region=r",
        "gs://KEYID:HU/SH@bucket",
        "s3://b/x?secret_key=HUSH&region=r",
    ):
        with pytest.raises(Refused) as refusal:
            Store(uri) if field == "uri" else place(uri)
        assert field in str(refusal.value) and "SH" not in str(refusal.value)
        assert "KEYID" not in str(refusal.value)
    with pytest.raises(Refused, match="AWS_SECRET_ACCESS_KEY"):
        Store("s3://KEYID:HU/SH@bucket/x")


# ---- plans and new names ------------------------------------------------------------------------------------------


def test_a_plan_is_claimed_once_and_compared_after(store: Store) -> None:
    plan: dict[str, Any] = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": (3,)}
    assert store.claim("plan.json", plan) == [] == store.claim("plan.json", plan)
    assert store.claim("plan.json", {"a": 1}) == [], "keys that a plan lacks do not matter"
    assert store.claim("plan.json", {"a": 2, "b": {"c": [1, 3], "d": None}, "f": 1}) == ["a", "b.c", "f"]
    assert store.read_json("plan.json") == json.loads(json.dumps(plan)), "the first plan stays"
    assert differing({"a": {"b": 1}}, {"a": 1}) == ["a"]


def test_a_new_name_is_written_by_one_only(store: Store) -> None:
    assert store.write_new("x", b"1") and not store.write_new("x", b"2") and store.read("x") == b"1"
    if store.local is not None:
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda i: store.write_new("y", b"%d" % i), range(64))) == 1
        assert store.list() == ["x", "y"] and len(list(store.local.iterdir())) == 2


# ---- one writer ---------------------------------------------------------------------------------------------------

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


def test_a_file_deleted_while_a_folder_is_listed_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.write("a", b"a")
    store.write("b", b"b")
    scan = os.scandir

    def scan_then_delete(folder: Any) -> Any:
        entries = list(scan(folder))
        store.delete("a")
        return entries

    monkeypatch.setattr("rayd.store.files.os.scandir", scan_then_delete)
    assert store.list() == ["b"]


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
