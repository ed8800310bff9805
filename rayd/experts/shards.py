"""Shards of experts: WebDatasets, committed one at a time.

`experts-00012.tar` holds, for every expert of one work unit, `KEY.theta.npy` ([snapshots, P], no pickle) and
`KEY.json`. `experts-00012.json`, written after it, is the commit marker: sizes, sha256, the place of each row and its
checksum. `manifest.parquet` is derived from the markers and can be rebuilt; `buffer.json` holds the fingerprint of what
determines a row's values, and the layout of theta.

webdataset writes the tars. It has no access to a part of a member, so single rows are read by offset and length, which the
marker holds; where whole experts are wanted (`samples`), the headers are read as those of a dataset's tars are.

Shapes: S snapshots of an expert, P parameters.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np

from rayd.data.sources.tars import members
from rayd.errors import Failed, Refused, refuse
from rayd.experts.trajectory import Trajectory, key_of
from rayd.schema import fields, from_json
from rayd.store import Store
from rayd.store.arrays import npy

FORMAT = 1
HEAD, MANIFEST = "buffer.json", "manifest.parquet"
DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
READERS = 16
"""Markers read at a time: on an object store each costs a round trip."""


def differences(there: Mapping[str, Any], wanted: Mapping[str, Any], where: str = "") -> list[str]:
    """A line for each value of `wanted` that `there` does not have; keys that `wanted` lacks do not matter."""
    lines: list[str] = []
    for key, want in wanted.items():
        have, path = there.get(key), f"{where}{key}"
        if isinstance(want, Mapping) and isinstance(have, Mapping):
            lines += differences(have, want, f"{path}.")
        elif have != want:
            lines.append(f"{path}: the buffer has {_short(have)}, this run asks {_short(want)}")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 48 else f"{text[:20]}...{text[-6:]}"


def refuse_other(store: Store, there: Mapping[str, Any], wanted: Mapping[str, Any], name: str = HEAD) -> None:
    lines = differences(there, wanted)
    if lines:
        raise Refused(
            f"{store.where(name)}: the experts there are not those of this run: {'; '.join(lines)}. "
            "Give another buffer=..., or make this run's settings equal"
        )


@dataclass(frozen=True)
class Commit:
    """One shard, as its marker describes it."""

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
    """One tar, built on a local disk; nobody sees it before `publish`."""

    def __init__(self, store: Store, fingerprint: Mapping[str, Any], name: str, dtype: np.dtype[Any]) -> None:
        self.store, self.fingerprint, self.name, self.dtype = store, fingerprint, name, dtype
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> Shard:
        from webdataset import TarWriter

        self._scratch = self.store.scratch(f"{self.name}.tar")
        self._path = self._scratch.__enter__()
        self._file = open(self._path, "wb")
        same = {"user": "", "group": "", "mode": 0o644, "mtime": 0}  # the same bytes, whoever writes them and when
        self._tar = TarWriter(self._file, encoder=False, **same)
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
        text = json.dumps(facts, sort_keys=True).encode()
        self._tar.write({"__key__": key, "json": text, "theta.npy": npy.getbuffer()})
        last_block = -npy.tell() % BLOCKSIZE  # the array is the tar's latest member, filled up to whole blocks
        offset = self._tar.tarstream.offset - last_block - rows_SP.nbytes
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

    def publish(self, made_by: Mapping[str, Any]) -> Commit:
        """The shard, then its marker. One of other experts or epochs, which it replaces, loses its marker first."""
        self._tar.close()
        self._file.close()
        try:
            return self._published(made_by)
        except (FileNotFoundError, Failed):
            done = None if self._path.exists() else committed(self.store, self.fingerprint, self.name)
            if done is None:
                raise
            return done  # another run of this plan was faster, and has removed the scratch file at its end

    def _published(self, made_by: Mapping[str, Any]) -> Commit:
        store, name = self.store, self.name
        marker = {
            "shard": f"{name}.tar",
            "bytes": self._path.stat().st_size,
            "sha256": sha256_of(self._path),
            "experts": self.rows,
            "fingerprint": self.fingerprint,
            "made_by": dict(made_by),
        }
        there = committed(store, self.fingerprint, name)
        if there is not None and there.marker["sha256"] == marker["sha256"]:
            return there
        if there is not None:
            store.delete(MANIFEST)
            store.delete(f"{name}.json")
        store.publish(self._path, f"{name}.tar")
        store.write_json(f"{name}.json", marker)
        store.delete(f"{name}.failed.json")
        return Commit(name, marker)

    def __exit__(self, *error: Any) -> None:
        for opened in (self._tar, self._file):
            with contextlib.suppress(OSError):  # a part that could not be written is lost with the scratch file
                opened.close()
        self._scratch.__exit__(*error)


def committed(
    store: Store, fingerprint: Mapping[str, Any], name: str, sizes: Mapping[str, int] | None = None
) -> Commit | None:
    """The shard, if its marker is there and agrees with it; another run's is refused."""
    tar, marker = f"{name}.tar", f"{name}.json"
    sizes = store.sizes(name) if sizes is None else sizes
    if marker not in sizes:
        return None
    commit = Commit(name, read_marker(store, marker))
    check_size(store, commit, sizes.get(tar))
    refuse_other(store, commit.marker["fingerprint"], fingerprint, marker)
    return commit


def samples(data: bytes) -> Iterator[dict[str, Any]]:
    """The experts of a tar, in order: `key`, `facts` (its JSON) and `rows`, the array of its snapshots."""
    experts: dict[str, dict[str, bytes]] = {}
    try:
        for name, offset, size in members(io.BytesIO(data), "shard"):
            key, _, ending = name.partition(".")
            experts.setdefault(key, {})[ending] = data[offset : offset + size]
        for key, sample in experts.items():
            rows_SP = np.ascontiguousarray(npy(sample["theta.npy"]))
            if rows_SP.ndim != 2:
                raise ValueError(f"{key}: {rows_SP.shape} are no snapshots")
            yield {"key": key, "facts": from_json(sample["json"]), "rows": rows_SP}
    except (KeyError, ValueError) as error:
        raise Failed(f"not a shard of experts ({error})") from error


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_head(store: Store) -> dict[str, Any]:
    if not store.exists(HEAD):
        raise Refused(f"{store.where(HEAD)}: no expert buffer here; make one with jobs.experts, or give buffer=...")
    where, head = store.where(HEAD), store.read_json(HEAD)
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        format = head.get("format") if isinstance(head, dict) else "?"
        raise Refused(f"{where}: format {format!s:.20}; this version reads format {FORMAT}")
    return fields(head, {"fingerprint": Mapping[str, Any], "theta": Mapping[str, Any]}, where)


MARKER: Mapping[str, Any] = {
    "bytes": int, "sha256": str, "fingerprint": Mapping[str, Any], "experts": tuple[Any, ...],
}  # fmt: skip
EXPERT: Mapping[str, Any] = {
    "key": str, "expert": int, "epochs": tuple[int, ...], "dtype": str, "row_bytes": int, "offset": int,
    "sha256": tuple[str, ...], "val_accuracy": tuple[float | None, ...] | None,
}  # fmt: skip
MOST = 2**31
"""No expert and no epoch has a higher number."""


def read_marker(store: Store, name: str) -> dict[str, Any]:
    """A marker whose rows lie within its shard; another may come from a stranger, and is refused."""
    where = store.where(name)
    marker = fields(store.read_json(name), MARKER, where)
    for i, row in enumerate(marker["experts"]):
        read, at = fields(row, EXPERT, f"{where}: experts[{i}]"), f"{where}: experts[{i}]"
        rows, accuracies = len(read["epochs"]), read["val_accuracy"]
        if read["dtype"] not in {dtype.str for dtype in DTYPES.values()}:
            raise refuse(f"{at}.dtype", read["dtype"], " | ".join(dtype.str for dtype in DTYPES.values()))
        if not all(0 <= number < MOST for number in (read["expert"], *read["epochs"])) or not rows:
            raise refuse(f"{at}.epochs", read["epochs"], "at least one epoch, from 0")
        if list(read["epochs"]) != sorted(set(read["epochs"])) or len(read["sha256"]) != rows:
            raise refuse(f"{at}.epochs", read["epochs"], "ascending epochs with a checksum each")
        if accuracies is not None and len(accuracies) != rows:
            raise refuse(f"{at}.val_accuracy", accuracies, f"{rows} numbers, or null")
        if any(re.fullmatch(r"[0-9a-f]{64}", sha256) is None for sha256 in read["sha256"]):
            raise refuse(f"{at}.sha256", read["sha256"], "checksums of 64 digits")
        size, offset = read["row_bytes"], read["offset"]
        if size < 1 or size % np.dtype(read["dtype"]).itemsize or not 0 <= offset <= marker["bytes"] - rows * size:
            raise refuse(
                f"{at}.offset", offset, f"{rows} rows of {size} bytes within the {marker['bytes']} of the shard"
            )
    return marker


def check_size(store: Store, commit: Commit, size: int | None) -> None:
    if size != commit.bytes:
        state = "is missing" if size is None else f"has {size} bytes"
        raise Failed(
            f"{store.where(commit.tar)} {state}, its marker says {commit.bytes}: the shard was damaged or the marker is "
            f"stale; {remedy(store, commit.name)}"
        )


def marker_names(sizes: Mapping[str, int]) -> list[str]:
    """Of the shards that have a marker."""
    return [name.removesuffix(".json") for name in sizes if name.endswith(".json") and ".failed." not in name]


def read_commits(store: Store, sizes: Mapping[str, int] | None = None) -> list[Commit]:
    """Every committed shard; refused are shards without a marker, and markers of other shards or other runs."""
    sizes = store.sizes("experts-") if sizes is None else sizes
    names = marker_names(sizes)
    with ThreadPoolExecutor(READERS) as pool:
        markers = list(pool.map(lambda name: read_marker(store, f"{name}.json"), names))
    commits = [Commit(name, marker) for name, marker in zip(names, markers, strict=True)]
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
