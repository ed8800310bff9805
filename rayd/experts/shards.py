"""Shards of experts: WebDatasets, committed one at a time.

`experts-00012.tar` holds, for every expert of one work unit, `KEY.theta.npy` ([snapshots, P], no pickle) and
`KEY.json`. `experts-00012.json`, written after it, is the commit marker: sizes, sha256, the place of each row and its
checksum. `manifest.parquet` is derived from the markers and can be rebuilt; `buffer.json` holds the fingerprint of what
determines a row's values, and the layout of theta.

webdataset writes the tars, and reads them where whole experts are wanted (`samples`). It has no access to a part of a
member, so single rows are read by offset and length, which the marker holds.

Shapes: S snapshots of an expert, P parameters.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tarfile import BLOCKSIZE, TarError
from typing import Any

import numpy as np

from rayd.errors import Failed, Refused
from rayd.experts.trajectory import Trajectory, key_of
from rayd.store import Store

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
        """The shard, then its marker. A shard it replaces loses its marker first."""
        store, name = self.store, self.name
        self._tar.close()
        self._file.close()
        if not self._path.exists() and (done := committed(store, self.fingerprint, name)) is not None:
            return done  # another run of this plan was faster, and has removed the scratch file
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
    commit = Commit(name, store.read_json(marker))
    check_size(store, commit, sizes.get(tar))
    refuse_other(store, commit.marker["fingerprint"], fingerprint, marker)
    return commit


def samples(data: bytes) -> Iterator[dict[str, Any]]:
    """The experts of a tar, in order: `key`, `facts` (its JSON) and `rows`, the array of its snapshots."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        for sample in group_by_keys(tar_file_expander([{"url": "shard", "stream": io.BytesIO(data)}])):
            rows_SP = np.load(io.BytesIO(sample["theta.npy"]), allow_pickle=False)
            yield {"key": sample["__key__"], "facts": json.loads(sample["json"]), "rows": rows_SP}
    except (TarError, KeyError, ValueError) as error:
        raise Failed(f"not a shard of experts ({error})") from error


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
        state = "is missing" if size is None else f"has {size} bytes"
        raise Failed(
            f"{store.where(commit.tar)} {state}, its marker says {commit.bytes}: the shard was damaged or the marker is "
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
