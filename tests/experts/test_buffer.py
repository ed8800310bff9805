from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds

from rayd.errors import Failed, Refused
from rayd.experts.buffer import Buffer, BufferWriter, verify
from rayd.experts.shards import MANIFEST
from rayd.experts.trajectory import Trajectory
from rayd.seeds import generator
from rayd.store import Store
from rayd.studies.bench import isolated
from rayd.studies.bench.buffer import fill
from tests.support.hashes import hashes
from tests.support.limits import file_size_limit
from tests.support.loopback import s3_server

P, S = 1000, 4
FINGERPRINT: dict[str, Any] = {"data": {"name": "digits"}, "expert": {"lr": 0.01}, "plan": {"seed": 0}}


def thetas(expert: int, snapshots: int = S) -> torch.Tensor:
    return torch.randn(snapshots, P, generator=generator(0, "theta", expert))


def commit(
    store: Store, unit: int, experts: list[int], snapshots: int = S, storage: str = "fp32", **other: Any
) -> None:
    writer = BufferWriter(store, {**FINGERPRINT, **other}, {"size": P})
    writer.claim()
    with writer.shard(f"experts-{unit:05d}", storage) as shard:
        for expert in experts:
            meta = {"val_accuracy": [0.1] * snapshots, "train_loss": [None] + [1.0] * (snapshots - 1)}
            shard.add(Trajectory(expert, tuple(range(snapshots)), thetas(expert, snapshots), meta), seed=expert)
        shard.publish({"torch": "x"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of two experts, with a manifest."""
    store = Store(tmp_path / "buffer")
    for unit in range(2):
        commit(store, unit, [2 * unit, 2 * unit + 1])
    BufferWriter(store, FINGERPRINT, {}).finish()
    return tmp_path / "buffer"


def test_segments_come_back_to_the_bit(folder: Path) -> None:
    buffer = Buffer(str(folder), FINGERPRINT)
    assert (buffer.experts, buffer.last_epoch, buffer.epochs(3)) == (4, 3, [0, 1, 2, 3])
    segment = buffer.segment(3, 1, 3)
    assert torch.equal(segment.start_P, thetas(3)[1]) and torch.equal(segment.end_P, thetas(3)[3])
    assert (segment.expert, segment.first, segment.last) == (3, 1, 3)
    assert buffer.verify() == []


def test_the_same_work_leaves_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = Store(tmp_path / "again")
    commit(again, 1, [2, 3])
    commit(again, 0, [0, 1])
    BufferWriter(again, FINGERPRINT, {}).finish()
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(again.list())
    for name in names:
        assert (folder / name).read_bytes() == again.read(name), name


def test_a_segment_touches_two_rows_and_an_index(folder: Path) -> None:
    buffer = Buffer(str(folder))
    opened = buffer.store.read_bytes
    assert opened < 12_000 < (folder / "experts-00000.tar").stat().st_size
    buffer.segment(2, 0, 2)
    assert buffer.store.read_bytes - opened == 2 * 4 * P


def test_memory_does_not_grow_with_the_experts(tmp_path: Path) -> None:
    memory = {}
    for experts in (8, 800):
        fill(str(tmp_path / str(experts)), experts, snapshots=51, parameters=100, per_shard=40)
        memory[experts] = isolated("buffer", "reading", uri=str(tmp_path / str(experts)), pairs=10)["memory"]
    assert memory[800] - memory[8] < 20 * 2**20


def test_webdataset_reads_it_without_rayd(folder: Path) -> None:
    npy = wds.handle_extension("npy", lambda data: np.load(io.BytesIO(data), allow_pickle=False))
    text = wds.handle_extension("json", json.loads)
    samples = list(wds.WebDataset(f"{folder}/experts-0000{{0..1}}.tar", shardshuffle=False).decode(npy, text, post=[]))
    assert [sample["__key__"] for sample in samples] == [f"expert-00000{k}" for k in range(4)]
    np.testing.assert_array_equal(samples[2]["theta.npy"], thetas(2).numpy())
    assert samples[2]["json"]["seed"] == 2 and len(samples[2]["json"]["val_accuracy"]) == S


def test_half_precision_rows(tmp_path: Path) -> None:
    store = Store(tmp_path)
    commit(store, 0, [0], storage="fp16")
    row = Buffer(store).row(0, 1)
    assert row.dtype == torch.float32 and torch.equal(row, thetas(0)[1].half().float())
    with pytest.raises(Failed, match=r"too large for fp16; set expert\.storage=fp32"):
        writer = BufferWriter(store, FINGERPRINT, {})
        with writer.shard("experts-00001", "fp16") as shard:
            shard.add(Trajectory(1, (0,), torch.full((1, P), 1e6)))


def test_the_manifest_is_derived(folder: Path) -> None:
    expected = Buffer(str(folder)).row(1, 1)
    (folder / MANIFEST).unlink()
    assert torch.equal(Buffer(str(folder)).row(1, 1), expected)
    commit(Store(folder), 2, [4])
    assert Buffer(str(folder)).experts == 5
    (folder / MANIFEST).write_bytes(b"")
    BufferWriter(Store(folder), FINGERPRINT, {}).finish()
    import pyarrow.parquet as pq

    table = pq.read_table(folder / MANIFEST)
    assert table.num_rows == 5 * S
    assert table.column_names[:4] == ["expert", "epoch", "shard", "offset"]


def test_a_shard_is_replaced_by_a_longer_one(folder: Path) -> None:
    commit(Store(folder), 0, [0, 1], snapshots=6)
    assert not (folder / MANIFEST).exists()
    buffer = Buffer(str(folder))
    assert buffer.last_epoch == 3 and buffer.epochs(0) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(Refused, match=r"epoch=5: allowed is one of \[0, 1, 2\]\.\.\.3"):
        buffer.row(3, 5)
    with pytest.raises(Refused, match="expert=4: allowed is 0 to 3"):
        buffer.row(4, 0)


# ---- faults: each is a clear error that names the file and says what to do ----------------------------------------------


def test_a_flipped_byte(folder: Path) -> None:
    path = folder / "experts-00001.tar"
    data = bytearray(path.read_bytes())
    marker = json.loads((folder / "experts-00001.json").read_text())
    data[marker["experts"][1]["offset"] + 2 * 4 * P + 5] ^= 1
    path.write_bytes(data)
    buffer = Buffer(str(folder))
    buffer.segment(3, 0, 1)
    with pytest.raises(
        Failed, match=r"experts-00001\.tar: expert 3, epoch 2 fails its checksum.*run jobs\.experts again"
    ):
        buffer.segment(3, 1, 2)
    (line,) = verify(str(folder))
    assert "experts-00001.tar: sha256 differs from its marker (expert 3 epoch 2)" in line


def test_verify_reads_the_shard_as_a_webdataset_and_compares_it_with_its_marker(folder: Path) -> None:
    path = folder / "experts-00001.json"
    marker = json.loads(path.read_text())
    marker["experts"][1]["offset"] -= 4 * P
    path.write_text(json.dumps(marker))
    assert "experts-00001.tar: expert 3 is not where its marker says" in verify(str(folder))[0]
    tar = folder / "experts-00000.tar"
    tar.write_bytes(b"no tar" * tar.stat().st_size)
    marker = json.loads((folder / "experts-00000.json").read_text())
    marker |= {"bytes": tar.stat().st_size, "sha256": hashlib.sha256(tar.read_bytes()).hexdigest()}
    (folder / "experts-00000.json").write_text(json.dumps(marker))
    assert "experts-00000.tar: not a shard of experts" in verify(str(folder))[0]


def test_a_truncated_tar(folder: Path) -> None:
    path = folder / "experts-00000.tar"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(Failed, match=r"experts-00000\.tar has \d+ bytes, its marker says \d+.*jobs\.experts again"):
        Buffer(str(folder))
    assert len(verify(str(folder))) == 1
    with pytest.raises(Failed, match=r"experts-00000\.tar"):
        BufferWriter(Store(folder), FINGERPRINT, {}).committed("experts-00000")


def test_a_missing_tar(folder: Path) -> None:
    (folder / "experts-00000.tar").unlink()
    with pytest.raises(Failed, match=r"experts-00000\.tar is missing"):
        Buffer(str(folder))


def test_a_missing_marker(folder: Path) -> None:
    (folder / "experts-00001.json").unlink()
    with pytest.raises(Refused, match=r"experts-00001\.tar: has no marker.*run jobs\.experts again"):
        Buffer(str(folder))
    assert "experts-00001.tar: has no marker" in verify(str(folder))[0]
    assert BufferWriter(Store(folder), FINGERPRINT, {}).committed("experts-00001") is None


def test_a_marker_of_another_run(folder: Path, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    commit(other, 0, [0, 1], expert={"lr": 0.02})
    shutil.copy(tmp_path / "other" / "experts-00000.json", folder)
    shutil.copy(tmp_path / "other" / "experts-00000.tar", folder)
    assert "expert.lr: the buffer has 0.02, this run asks 0.01" in verify(str(folder))[0]
    (folder / MANIFEST).unlink()
    with pytest.raises(Refused, match=r"experts-00000\.json.*expert\.lr"):
        Buffer(str(folder))


def test_a_buffer_of_other_experts_is_refused_with_a_diff(folder: Path) -> None:
    asked = {**FINGERPRINT, "data": {"name": "cifar10"}, "transform": {"kind": "zca"}}
    with pytest.raises(Refused) as caught:
        Buffer(str(folder), asked)
    assert 'data.name: the buffer has "digits", this run asks "cifar10"' in str(caught.value)
    assert 'transform: the buffer has null, this run asks {"kind": "zca"}' in str(caught.value)
    assert "lr" not in str(caught.value)
    Buffer(str(folder), {key: FINGERPRINT[key] for key in ("data", "expert")})


def test_two_runs_in_one_folder(folder: Path) -> None:
    with pytest.raises(
        Refused, match=r"buffer\.json.*expert\.lr: the buffer has 0.01, this run asks 0.5.*another buffer"
    ):
        BufferWriter(Store(folder), {**FINGERPRINT, "expert": {"lr": 0.5}}, {}).claim()


def test_no_buffer_here(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"buffer\.json: no expert buffer here; make one with jobs\.experts"):
        Buffer(str(tmp_path / "nowhere"))


def test_a_full_disk_loses_nothing_committed(folder: Path) -> None:
    before = hashes(folder)
    with file_size_limit(20_000), pytest.raises(Failed, match=r"experts-00002\.tar: no room left.*same command again"):
        commit(Store(folder), 2, [4, 5])
    after = hashes(folder)
    assert after == before and Store(folder).sweep() == 0
    commit(Store(folder), 2, [4, 5])
    assert Buffer(str(folder)).experts == 6


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


def test_on_an_object_store(bucket: str, folder: Path) -> None:
    store = Store(bucket)
    for unit in range(2):
        commit(store, unit, [2 * unit, 2 * unit + 1])
    BufferWriter(store, FINGERPRINT, {}).finish()
    for path in folder.iterdir():
        assert store.read(path.name) == path.read_bytes(), path.name
    buffer = Buffer(bucket, FINGERPRINT)
    opened = buffer.store.read_bytes
    assert torch.equal(buffer.segment(1, 0, 3).end_P, thetas(1)[3])
    assert buffer.store.read_bytes - opened == 2 * 4 * P
    store.write("experts-00001.tar", b"short")
    with pytest.raises(Failed, match=r"bucket/experts/experts-00001\.tar has 5 bytes"):
        Buffer(bucket)
