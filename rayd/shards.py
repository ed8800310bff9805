"""Shards of experts: valid WebDatasets, committed one at a time.

`experts-00012.tar` holds, for every expert of one work unit, `KEY.theta.npy` ([snapshots, P], no pickle) and
`KEY.json`. `experts-00012.json`, written after it, is the commit marker: sizes, sha256, where each row lies and its
checksum. `manifest.parquet` is derived from the markers and can be rebuilt; `buffer.json` holds the fingerprint of what
determines a row's values, and the layout of theta.

Shapes: S snapshots of an expert, P parameters.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayd.errors import Failed, Refused
from rayd.expert import key_of
from rayd.store import Store
from rayd.trajectory import Trajectory

FORMAT = 1
HEAD, MANIFEST = "buffer.json", "manifest.parquet"
DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
COLUMNS = ("expert", "epoch", "offset", "bytes")
BATCH = 4096
READERS = 16
"""Markers read at a time: on an object store each costs a round trip."""


def differences(there: Mapping[str, Any], asked: Mapping[str, Any], where: str = "") -> list[str]:
    """What `asked` says otherwise than `there`, one line each; keys that `asked` lacks do not matter."""
    lines: list[str] = []
    for key, want in asked.items():
        have, path = there.get(key), f"{where}{key}"
        if isinstance(want, Mapping) and isinstance(have, Mapping):
            lines += differences(have, want, f"{path}.")
        elif have != want:
            lines.append(f"{path}: the buffer has {_short(have)}, this run asks {_short(want)}")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 48 else f"{text[:20]}...{text[-6:]}"


def refuse_other(store: Store, there: Mapping[str, Any], asked: Mapping[str, Any], name: str = HEAD) -> None:
    found = differences(there, asked)
    if found:
        raise Refused(
            f"{store.where(name)}: the experts there are not those of this run: {'; '.join(found)}. "
            "Give another buffer=..., or make this run's settings equal"
        )


@dataclass(frozen=True)
class Commit:
    """One shard as its marker tells it."""

    name: str
    marker: Mapping[str, Any]

    @property
    def tar(self) -> str:
        return f"{self.name}.tar"

    @property
    def bytes(self) -> int:
        return int(self.marker["bytes"])

    def holds(self, experts: Iterable[int], epochs: Iterable[int]) -> bool:
        """Whether every one of these experts has every one of these epochs."""
        have = {row["expert"]: set(row["epochs"]) for row in self.marker["experts"]}
        return all(k in have and set(epochs) <= have[k] for k in experts)


def remedy(store: Store, name: str) -> str:
    return f"delete {store.where(name)}.tar and .json and run jobs.experts again, which makes the same bytes anew"


class Shard:
    """One tar under construction on a local disk; nothing is seen of it before `publish`."""

    def __init__(self, store: Store, fingerprint: Mapping[str, Any], name: str, dtype: np.dtype[Any]) -> None:
        self.store, self.fingerprint, self.name, self.dtype = store, fingerprint, name, dtype
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> Shard:
        self._scratch = self.store.scratch(f"{self.name}.tar")
        self._path = self._scratch.__enter__()
        self._file = open(self._path, "wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        return self

    def add(self, trajectory: Trajectory, **more: Any) -> None:
        """One expert: its rows and its figures."""
        with np.errstate(over="ignore"):
            rows_SP = trajectory.thetas_SP.numpy().astype(self.dtype)
        if not np.isfinite(rows_SP).all():
            raise Failed(
                f"{self.name}, expert {trajectory.expert}: numbers too large for fp16; set expert.storage=fp32"
            )
        npy = io.BytesIO()
        np.save(npy, rows_SP, allow_pickle=False)
        key = key_of(trajectory.expert)
        facts = {"expert": trajectory.expert, "epochs": list(trajectory.epochs), **trajectory.meta, **more}
        self._member(f"{key}.json", io.BytesIO(json.dumps(facts, sort_keys=True).encode()))
        header = npy.tell() - rows_SP.nbytes
        offset = self._member(f"{key}.theta.npy", npy) + header
        self.rows.append(
            {
                "key": key,
                "expert": trajectory.expert,
                "epochs": list(trajectory.epochs),
                "dtype": rows_SP.dtype.str,
                "row_bytes": rows_SP[0].nbytes,
                "offset": offset,
                "sha256": [hashlib.sha256(row).hexdigest() for row in rows_SP],
                "val_accuracy": trajectory.meta.get("val_accuracy"),
                "train_loss": trajectory.meta.get("train_loss"),
            }
        )

    def _member(self, name: str, data: io.BytesIO) -> int:
        """A file of the tar, without a time or an owner; returns where its bytes begin."""
        info = tarfile.TarInfo(name)
        info.size = data.seek(0, io.SEEK_END)
        data.seek(0)
        self._tar.addfile(info, data)
        return int(self._tar.offset) - -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

    def publish(self, made_by: Mapping[str, Any]) -> Commit:
        """The shard, then its marker. A shard it replaces loses its marker first."""
        store, name = self.store, self.name
        self._tar.close()
        self._file.close()
        if not self._path.exists() and (done := committed(store, self.fingerprint, name)) is not None:
            return done  # another run of this plan was faster, and has swept up
        marker = {
            "shard": f"{name}.tar",
            "bytes": self._path.stat().st_size,
            "sha256": sha256_of(self._path),
            "experts": self.rows,
            "fingerprint": self.fingerprint,
            "made_by": dict(made_by),
        }
        if store.exists(f"{name}.json"):
            store.delete(MANIFEST)
            store.delete(f"{name}.json")
        store.publish(self._path, f"{name}.tar")
        store.write_json(f"{name}.json", marker)
        store.delete(f"{name}.failed.json")
        return Commit(name, marker)

    def __exit__(self, *error: Any) -> None:
        with contextlib.suppress(OSError):  # what was not written is given up with the file
            self._file.close()
        self._scratch.__exit__(*error)


def committed(
    store: Store, fingerprint: Mapping[str, Any], name: str, sizes: Mapping[str, int] | None = None
) -> Commit | None:
    """The shard, if its marker is there and agrees with it; another run's is refused."""
    tar, marker = f"{name}.tar", f"{name}.json"
    sizes = store.sizes(name) if sizes is None else sizes
    if marker not in sizes:
        return None
    commit = Commit(name, store.read_json(marker))
    check_size(store, commit, sizes.get(tar))
    refuse_other(store, commit.marker["fingerprint"], fingerprint, marker)
    return commit


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_head(store: Store) -> dict[str, Any]:
    if not store.exists(HEAD):
        raise Refused(f"{store.where(HEAD)}: no expert buffer here; make one with jobs.experts, or give buffer=...")
    head: dict[str, Any] = store.read_json(HEAD)
    if head.get("format") != FORMAT:
        raise Refused(f"{store.where(HEAD)}: format {head.get('format')}; this version reads format {FORMAT}")
    return head


def check_size(store: Store, commit: Commit, size: int | None) -> None:
    if size != commit.bytes:
        said = "is missing" if size is None else f"has {size} bytes"
        raise Failed(
            f"{store.where(commit.tar)} {said}, its marker says {commit.bytes}: the shard was damaged or the marker is "
            f"stale; {remedy(store, commit.name)}"
        )


def read_commits(store: Store, sizes: Mapping[str, int] | None = None, *, strict: bool = True) -> list[Commit]:
    """Every committed shard; `strict` refuses shards without a marker, and markers of other shards or other runs."""
    sizes = store.sizes("experts-") if sizes is None else sizes
    names = [name.removesuffix(".json") for name in sizes if name.endswith(".json") and ".failed." not in name]
    with ThreadPoolExecutor(READERS) as pool:
        markers = list(pool.map(lambda name: store.read_json(f"{name}.json"), names))
    commits = [Commit(name, marker) for name, marker in zip(names, markers, strict=True)]
    if strict:
        head = read_head(store)
        for commit in commits:
            check_size(store, commit, sizes.get(commit.tar))
            refuse_other(store, commit.marker["fingerprint"], head["fingerprint"], f"{commit.name}.json")
        refuse_unmarked(store, sizes)
    return commits


def refuse_unmarked(store: Store, sizes: Mapping[str, int]) -> None:
    for name in sizes:
        if name.endswith(".tar") and f"{name.removesuffix('.tar')}.json" not in sizes:
            raise Refused(
                f"{store.where(name)}: has no marker, so it was never committed (or the marker was lost); "
                "run jobs.experts again, which commits it"
            )


def manifest_of(store: Store, commits: list[Commit]) -> Any:
    """One row per snapshot, sorted by expert and epoch; the files it describes are named in its metadata."""
    import pyarrow as pa

    rows = [
        (
            row["expert"],
            epoch,
            commit.tar,
            row["offset"] + i * row["row_bytes"],
            row["row_bytes"],
            row["dtype"],
            bytes.fromhex(row["sha256"][i]),
            (row["val_accuracy"] or {i: None})[i],
        )
        for commit in commits
        for row in commit.marker["experts"]
        for i, epoch in enumerate(row["epochs"])
    ]
    rows.sort(key=lambda row: row[:2])
    kinds = (pa.int32(), pa.int32(), pa.string(), pa.int64(), pa.int64(), pa.string(), pa.binary(32), pa.float32())
    names = ("expert", "epoch", "shard", "offset", "bytes", "dtype", "sha256", "val_accuracy")
    arrays = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(kinds)]
    sizes = {commit.tar: commit.bytes for commit in commits} | {
        f"{commit.name}.json": store.size(f"{commit.name}.json") for commit in commits
    }
    return pa.table(arrays, names=names).replace_schema_metadata({"rayd.sizes": json.dumps(sizes, sort_keys=True)})


def write_manifest(store: Store, commits: list[Commit]) -> None:
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(manifest_of(store, commits), out)
    store.write(MANIFEST, out.getvalue())


@dataclass(frozen=True)
class Index:
    """The manifest as plain arrays, one entry a row of the buffer, sorted by expert and epoch."""

    expert: np.ndarray[Any, Any]
    epoch: np.ndarray[Any, Any]
    shard: np.ndarray[Any, Any]
    """Place of the row's tar in `shards`."""
    offset: np.ndarray[Any, Any]
    bytes: np.ndarray[Any, Any]
    sha256: np.ndarray[Any, Any]
    shards: list[str]
    dtype: np.dtype[Any]


def read_index(store: Store, sizes: Mapping[str, int]) -> Index:
    """Out of the stored manifest, or out of the markers where that does not describe the shards that are there.

    In small batches and one thread: the memory of a reader must not follow the number of experts.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    here = {name: size for name, size in sizes.items() if not name.endswith(".failed.json")}
    if store.exists(MANIFEST):
        with pq.ParquetFile(io.BytesIO(store.read(MANIFEST)), pre_buffer=False) as file:
            told = json.loads((file.schema_arrow.metadata or {}).get(b"rayd.sizes", b"{}"))
            if told == here:
                return _gather(file.iter_batches(BATCH, use_threads=False))
    index = _gather(manifest_of(store, read_commits(store, sizes)).to_batches(BATCH))
    pa.default_memory_pool().release_unused()
    return index


def _gather(batches: Iterable[Any]) -> Index:
    """Record batches as arrays; checksums as bytes, not as an object each."""
    names: dict[str, int] = {}
    parts: dict[str, list[np.ndarray[Any, Any]]] = {name: [np.empty(0, np.int64)] for name in (*COLUMNS, "shard")}
    checksums = [np.empty((0, 32), np.uint8)]
    dtype = DTYPES["fp32"]
    for batch in batches:
        for name in COLUMNS:
            parts[name].append(batch[name].to_numpy().astype(np.int64))
        shards = batch["shard"].dictionary_encode()
        places = np.array([names.setdefault(name, len(names)) for name in shards.dictionary.to_pylist()], np.int64)
        parts["shard"].append(places[shards.indices.to_numpy()])
        raw = np.frombuffer(batch["sha256"].buffers()[1], np.uint8)[batch["sha256"].offset * 32 :]
        checksums.append(raw[: len(batch) * 32].reshape(-1, 32).copy())
        dtype = np.dtype(batch["dtype"][0].as_py()) if len(batch) else dtype
    arrays = {name: np.concatenate(found) for name, found in parts.items()}
    return Index(**arrays, sha256=np.concatenate(checksums), shards=list(names), dtype=dtype)
