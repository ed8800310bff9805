"""Transient errors are waited out; the settings of a store, and its credentials."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayd.errors import Failed, Refused, Transient
from rayd.store import Store, StoreConfig, configure
from rayd.store.patience import is_transient
from tests.support.faults import TRANSIENT, faulty
from tests.support.proxy import faulty_proxy


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
