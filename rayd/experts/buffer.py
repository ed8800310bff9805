"""The expert buffer: written shard by shard, read two rows at a time, whatever the number of experts.

The folder's files are described in shards.py. A segment costs two range reads; the index of all rows is in memory.

Shapes: P parameters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayd.errors import Failed, Refused, refuse
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
    read_commits,
    read_head,
    refuse_other,
    refuse_unmarked,
    remedy,
)
from rayd.experts.trajectory import Segment
from rayd.store import Store

__all__ = ["Buffer", "BufferWriter", "differences", "verify"]


class BufferWriter:
    """Claims a folder for one fingerprint, then commits shards to it, from any number of processes."""

    def __init__(self, store: Store, fingerprint: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
        self.store, self.fingerprint, self.layout = store, fingerprint, layout

    def claim(self) -> None:
        """The folder is this run's, or it is refused."""
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

    def fail(self, name: str, numbers: Mapping[str, Any]) -> None:
        """A unit that diverged: its numbers instead of a shard."""
        self.store.write_json(f"{name}.failed.json", dict(numbers))

    def failed(self, name: str) -> Mapping[str, Any] | None:
        return self.store.read_json(f"{name}.failed.json") if self.store.exists(f"{name}.failed.json") else None

    def finish(self) -> int:
        """The manifest, and nothing left over; returns the bytes of all shards."""
        self.store.sweep()
        commits = read_commits(self.store)
        write_manifest(self.store, commits)
        return sum(commit.bytes for commit in commits)


class Buffer:
    """Reads rows by expert and epoch. Holds an index of some 60 bytes a row and nothing of the shards."""

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
        self._index, self._key = index, index.expert * 2**20 + index.epoch
        self.numbers: list[int] = np.unique(self._key >> 20).tolist()
        """The plan's numbers of the experts that are here; one that diverged is missing."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return self.head["fingerprint"]  # type: ignore[no-any-return]

    @property
    def experts(self) -> int:
        """How many there are; they are asked for by place, 0 to experts - 1."""
        return len(self.numbers)

    @property
    def last_epoch(self) -> int:
        """The last epoch that every expert has."""
        last = np.full(self.numbers[-1] + 1, -1, np.int64)
        np.maximum.at(last, self._key >> 20, self._key & (2**20 - 1))
        return int(last[self.numbers].min())

    def epochs(self, expert: int) -> list[int]:
        return (self._key[self._key >> 20 == self._number(expert)] & (2**20 - 1)).tolist()  # type: ignore[no-any-return]

    def shard_of(self, expert: int) -> str:
        """Name of the tar that holds an expert."""
        at = int(np.searchsorted(self._key, self._number(expert) * 2**20))
        return str(self._index.shards[self._index.shard[at]])

    def row(self, expert: int, epoch: int) -> Tensor:
        """theta_P in fp32, checked against its checksum."""
        key = self._number(expert) * 2**20 + epoch
        at = int(np.searchsorted(self._key, key))
        if at == len(self._key) or self._key[at] != key:
            have = self.epochs(expert)
            raise refuse(
                "epoch",
                epoch,
                f"one of {have[:3]}...{have[-1]}, which are kept of expert {expert}",
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


def verify(store: Store | str) -> list[str]:
    """Everything that is wrong with a buffer, a line each: every byte is read."""
    store = store if isinstance(store, Store) else Store(store)
    head, sizes = read_head(store), store.sizes("experts-")
    wrong: list[str] = []
    for commit in read_commits(store, sizes, strict=False):
        try:
            check_size(store, commit, sizes.get(commit.tar))
            refuse_other(store, commit.marker["fingerprint"], head["fingerprint"], f"{commit.name}.json")
        except (Failed, Refused) as error:
            wrong.append(str(error))
            continue
        data = store.read(commit.tar)
        if hashlib.sha256(data).hexdigest() != commit.marker["sha256"]:
            bad = ", ".join(_bad_rows(commit, data)) or "outside the rows"
            told = f"{store.where(commit.tar)}: sha256 differs from its marker ({bad})"
            wrong.append(f"{told}; {remedy(store, commit.name)}")
    try:
        refuse_unmarked(store, sizes)
    except Refused as error:
        wrong.append(str(error))
    return wrong


def _bad_rows(commit: Commit, data: bytes) -> list[str]:
    bad: list[str] = []
    for row in commit.marker["experts"]:
        for i, epoch in enumerate(row["epochs"]):
            start = row["offset"] + i * row["row_bytes"]
            if hashlib.sha256(data[start : start + row["row_bytes"]]).hexdigest() != row["sha256"][i]:
                bad.append(f"expert {row['expert']} epoch {epoch}")
    return bad
