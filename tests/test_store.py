from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayd.errors import Failed, Refused
from rayd.store import Store
from tests.support.limits import file_size_limit
from tests.support.loopback import s3_server


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


def test_leftovers_of_killed_writers_are_hidden_and_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / ".experts-00000.tar.abc.tmp").write_bytes(b"left")
    assert store.list() == []
    assert store.sweep() == 1 and list(tmp_path.iterdir()) == []


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


def test_a_query_stays_at_the_end():
    from rayd.store import within

    assert within("runs/a/", "experts") == "runs/a/experts"
    assert within("s3://bucket/run?region=x&scheme=http", "experts") == "s3://bucket/run/experts?region=x&scheme=http"
