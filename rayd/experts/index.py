"""The manifest of a buffer: a row for every stored snapshot, derived from the markers of the shards."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayd.experts.shards import DTYPES, MANIFEST, Commit, read_commits
from rayd.schema import from_json
from rayd.store import Store

log = logging.getLogger(__name__)

NAMES = ["expert", "epoch", "shard", "offset", "bytes", "dtype", "sha256", "val_accuracy"]
COLUMNS = ("expert", "epoch", "offset", "bytes")
BATCH = 4096


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
    arrays = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(_kinds())]
    sizes = {commit.tar: commit.bytes for commit in commits} | {
        f"{commit.name}.json": store.size(f"{commit.name}.json") for commit in commits
    }
    return pa.table(arrays, names=NAMES).replace_schema_metadata({"rayd.sizes": json.dumps(sizes, sort_keys=True)})


def _kinds() -> tuple[Any, ...]:
    """The types of the columns, in the order of their names."""
    import pyarrow as pa

    return (pa.int32(), pa.int32(), pa.string(), pa.int64(), pa.int64(), pa.string(), pa.binary(32), pa.float32())


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
    """Read from the stored manifest, or from the markers where the manifest describes other shards.

    In small batches and one thread, so that a reader's memory does not grow with the number of experts.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    here = {name: size for name, size in sizes.items() if not name.endswith(".failed.json")}
    if store.exists(MANIFEST):
        try:
            data = store.read(MANIFEST)
            with pq.ParquetFile(io.BytesIO(data), pre_buffer=False) as file:
                if file.metadata.num_rows * 32 > len(data):
                    raise ValueError("more rows than there is room for their checksums")
                described = from_json((file.schema_arrow.metadata or {}).get(b"rayd.sizes", b"{}"))
                if described == here:
                    return _gather(file.iter_batches(BATCH, use_threads=False), here)
        except (pa.ArrowException, ValueError, KeyError, OSError) as error:
            log.warning("%s: not readable (%s); the markers are read instead", store.where(MANIFEST), error)
    index = _gather(manifest_of(store, read_commits(store, sizes)).to_batches(BATCH), here)
    pa.default_memory_pool().release_unused()
    return index


def _gather(batches: Iterable[Any], sizes: Mapping[str, int]) -> Index:
    """Record batches as arrays; the checksums as bytes, which take less memory than objects. A ValueError where the rows
    are not those of the shards of these sizes."""
    names: dict[str, int] = {}
    parts: dict[str, list[np.ndarray[Any, Any]]] = {name: [np.empty(0, np.int64)] for name in (*COLUMNS, "shard")}
    checksums = [np.empty((0, 32), np.uint8)]
    dtype = DTYPES["fp32"]
    kinds = dict(zip(NAMES, _kinds(), strict=True))
    for batch in batches:
        wrong = [name for name in NAMES if batch.schema.field(name).type != kinds[name]]
        if wrong or any(batch[name].null_count for name in NAMES if name != "val_accuracy"):
            raise ValueError(f"its columns are not {', '.join(NAMES)}, or rows are not whole")
        for name in COLUMNS:
            parts[name].append(batch[name].to_numpy().astype(np.int64))
        shards = batch["shard"].dictionary_encode()
        places = np.array([names.setdefault(name, len(names)) for name in shards.dictionary.to_pylist()], np.int64)
        parts["shard"].append(places[shards.indices.to_numpy()])
        raw = np.frombuffer(batch["sha256"].buffers()[1], np.uint8)[batch["sha256"].offset * 32 :]
        checksums.append(raw[: len(batch) * 32].reshape(-1, 32).copy())
        types = set(batch["dtype"].unique().to_pylist())
        if not types <= {dtype.str for dtype in DTYPES.values()} or len(types) > 1:
            raise ValueError(f"rows of {types}")
        dtype = np.dtype(types.pop()) if types else dtype
    arrays = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    room = np.array([sizes.get(name, -1) for name in names], np.int64)
    order = np.lexsort((arrays["epoch"], arrays["expert"]))
    inside = (arrays["offset"] >= 0) & (arrays["bytes"] > 0) & (arrays["bytes"] % dtype.itemsize == 0)
    if len(room):
        inside &= arrays["offset"] + arrays["bytes"] <= room[arrays["shard"]]
    if not inside.all() or not np.array_equal(order, np.arange(len(order))) or (arrays["expert"] < 0).any():
        raise ValueError("rows that lie in no shard, or not in order")
    return Index(**arrays, sha256=np.concatenate(checksums), shards=list(names), dtype=dtype)
