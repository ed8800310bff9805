"""A folder behind a URI: whole names, drafts, plans claimed."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rayd.errors import Failed, Refused
from rayd.store import Store, differing, within
from rayd.store.files import LocalFiles
from tests.support.limits import file_size_limit


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
