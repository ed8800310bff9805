"""The expert buffer: written shard by shard, read two rows at a time, whatever the number of experts.

shards.py describes the files of the folder. A segment costs two range reads; the index of all rows is in memory.

Shapes: P parameters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayd.errors import Failed, Refused, Transient, refuse
from rayd.experts.index import read_index, write_manifest
from rayd.experts.shards import (
    DTYPES,
    FORMAT,
    HEAD,
    Commit,
    Shard,
    check_size,
    committed,
    differences,
    marker_names,
    read_commits,
    read_head,
    read_marker,
    refuse_other,
    refuse_unmarked,
    remedy,
    samples,
)
from rayd.experts.trajectory import Segment
from rayd.experts.unfinished import FOLDER, Unfinished
from rayd.store import Store

__all__ = ["Buffer", "BufferWriter", "differences", "verify"]


class BufferWriter:
    """Claims a folder for one fingerprint, then commits shards to it, from any number of processes."""

    def __init__(self, store: Store, fingerprint: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
        self.store, self.fingerprint, self.layout = store, fingerprint, layout

    def claim(self) -> None:
        """Take the folder for this run; another run's folder is refused."""
        if not self.store.exists(HEAD):
            if any(name.endswith(".tar") for name in self.store.sizes("experts-")):
                raise Refused(f"{self.store.where(HEAD)}: missing beside shards; restore it or give another buffer=...")
            self.store.write_json(HEAD, {"format": FORMAT, "fingerprint": self.fingerprint, "theta": self.layout})
        head = read_head(self.store)
        refuse_other(self.store, head["fingerprint"], self.fingerprint)

    def committed(self, name: str, sizes: Mapping[str, int] | None = None) -> Commit | None:
        """The shard, if its marker is there and agrees with it."""
        return committed(self.store, self.fingerprint, name, sizes)

    def shard(self, name: str, storage: str) -> Shard:
        return Shard(self.store, self.fingerprint, name, DTYPES[storage])

    def unfinished(self, name: str, experts: Sequence[int]) -> Unfinished:
        """Epochs of a shard that is not committed yet."""
        return Unfinished(self.store, name, {"fingerprint": self.fingerprint, "experts": experts})

    def fail(self, name: str, numbers: Mapping[str, Any]) -> None:
        """Record why a unit diverged, in place of its shard."""
        self.store.write_json(f"{name}.failed.json", dict(numbers))

    def failed(self, name: str) -> Mapping[str, Any] | None:
        return self.store.read_json(f"{name}.failed.json") if self.store.exists(f"{name}.failed.json") else None

    def finish(self) -> int:
        """Write the manifest and remove temporary files; returns the bytes of all shards."""
        self.store.sweep()
        leftover = self.store.sub(FOLDER)
        for name in leftover.list():
            leftover.delete(name)
        commits = read_commits(self.store)
        write_manifest(self.store, commits)
        return sum(commit.bytes for commit in commits)


class Buffer:
    """Reads rows by expert and epoch. Its index takes some 60 bytes a row."""

    def __init__(self, store: Store | str, expect: Mapping[str, Any] | None = None) -> None:
        self.store = store if isinstance(store, Store) else Store(store)
        self.head = read_head(self.store)
        if expect is not None:
            refuse_other(self.store, self.head["fingerprint"], expect)
        sizes = self.store.sizes("experts-")
        refuse_unmarked(self.store, sizes)
        index = read_index(self.store, sizes)
        if len(index.expert) == 0:
            raise Refused(f"{self.store.where('')}: holds no committed experts yet; run jobs.experts")
        self._index = index
        self.numbers: list[int] = np.unique(index.expert).tolist()
        """The plan's numbers of the experts in the buffer; an expert that diverged is missing."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return self.head["fingerprint"]  # type: ignore[no-any-return]

    @property
    def experts(self) -> int:
        """How many there are; callers number them by place, 0 to experts - 1."""
        return len(self.numbers)

    @property
    def last_epoch(self) -> int:
        """The last epoch that every expert has."""
        lasts = np.searchsorted(self._index.expert, self.numbers, side="right") - 1
        return int(self._index.epoch[lasts].min())

    def epochs(self, expert: int) -> list[int]:
        rows: list[int] = self._index.epoch[slice(*self._rows(expert))].tolist()
        return rows

    def shard_of(self, expert: int) -> str:
        """Name of the tar that holds an expert."""
        return self._index.shards[int(self._index.shard[self._rows(expert)[0]])]

    def row(self, expert: int, epoch: int) -> Tensor:
        """theta_P in fp32, checked against its checksum."""
        first, end = self._rows(expert)
        at = first + int(np.searchsorted(self._index.epoch[first:end], epoch))
        if at == end or self._index.epoch[at] != epoch:
            kept = self.epochs(expert)
            raise refuse(
                "epoch",
                epoch,
                f"one of {kept[:3]}...{kept[-1]}, which are kept of expert {expert}",
                "train with a longer window or expert.keep=all",
            )
        shard = self._index.shards[self._index.shard[at]]
        data = self.store.read_range(shard, int(self._index.offset[at]), int(self._index.bytes[at]))
        if hashlib.sha256(data).digest() != self._index.sha256[at].tobytes():
            raise Failed(
                f"{self.store.where(shard)}: expert {self._number(expert)}, epoch {epoch} fails its checksum, the "
                f"shard is damaged; {remedy(self.store, shard.removesuffix('.tar'))}"
            )
        return torch.from_numpy(np.frombuffer(data, self._index.dtype).astype(np.float32))

    def segment(self, expert: int, first: int, last: int) -> Segment:
        return Segment(self.row(expert, first), self.row(expert, last), self._number(expert), first, last)

    def verify(self) -> list[str]:
        return verify(self.store)

    def _number(self, expert: int) -> int:
        if not 0 <= expert < self.experts:
            raise refuse("expert", expert, f"0 to {self.experts - 1}: the buffer has {self.experts} experts")
        return self.numbers[expert]

    def _rows(self, expert: int) -> tuple[int, int]:
        """First row of an expert in the index, and the row after its last."""
        number = self._number(expert)
        first, end = np.searchsorted(self._index.expert, [number, number + 1])
        return int(first), int(end)


def verify(store: Store | str) -> list[str]:
    """A line for each fault of a buffer: every byte is read."""
    store = store if isinstance(store, Store) else Store(store)
    head, sizes = read_head(store), store.sizes("experts-")
    faults: list[str] = []
    for name in marker_names(sizes):
        try:
            commit = Commit(name, read_marker(store, f"{name}.json"))
            check_size(store, commit, sizes.get(commit.tar))
            refuse_other(store, commit.marker["fingerprint"], head["fingerprint"], f"{commit.name}.json")
        except Transient:
            raise
        except (Failed, Refused) as error:
            faults.append(str(error))
            continue
        fault = _fault(commit, store.read(commit.tar))
        if fault:
            faults.append(f"{store.where(commit.tar)}: {fault}; {remedy(store, commit.name)}")
    try:
        refuse_unmarked(store, sizes)
    except Refused as error:
        faults.append(str(error))
    return faults


def _fault(commit: Commit, data: bytes) -> str:
    """How a shard differs from its marker; empty where it does not."""
    rows = commit.marker["experts"]
    if hashlib.sha256(data).hexdigest() != commit.marker["sha256"]:
        places = [(row, i, row["offset"] + i * row["row_bytes"]) for row in rows for i in range(len(row["epochs"]))]
        damaged = [
            f"expert {row['expert']} epoch {row['epochs'][i]}"
            for row, i, start in places
            if hashlib.sha256(data[start : start + row["row_bytes"]]).hexdigest() != row["sha256"][i]
        ]
        return f"sha256 differs from its marker ({', '.join(damaged) or 'outside the rows'})"
    try:
        experts = {sample["key"]: sample["rows"] for sample in samples(data)}
    except Failed as error:
        return str(error)
    for row in rows:
        thetas = experts.get(row["key"], ())
        first = data[row["offset"] : row["offset"] + row["row_bytes"]]
        checksums = [hashlib.sha256(theta).hexdigest() for theta in thetas]
        if checksums != row["sha256"] or hashlib.sha256(first).hexdigest() != checksums[0]:
            return f"expert {row['expert']} is not where its marker says"
    return "" if len(experts) == len(rows) else f"{len(experts)} experts, its marker says {len(rows)}"
