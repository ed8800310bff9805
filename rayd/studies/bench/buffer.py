"""Reading segments, against scanning the shard as a WebDataset does: milliseconds, bytes, memory.

The floor is reading as many bytes of the same file at random places by plain system calls.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from rayd.experts.buffer import Buffer, BufferWriter
from rayd.experts.trajectory import Trajectory, key_of
from rayd.seeds import generator
from rayd.store import Store
from rayd.studies.bench import BenchRow, Timing, compared, interleaved, isolated, resident, timings

PARAMETERS = 320_010
"""Of ConvNet-3 with 128 channels on CIFAR-10: 1.28 MB a row."""
SIZES = {"default": {"experts": 8, "snapshots": 11}, "full": {"experts": 16, "snapshots": 51}}
READS = {"scan": 1, "ours": 20, "floor": 20}
"""Segments in one turn."""


def fill(uri: str, experts: int, snapshots: int, parameters: int, per_shard: int = 8) -> None:
    """A buffer of random rows: what they say does not matter here."""
    writer = BufferWriter(Store(uri), {"made": "for a measurement"}, {"size": parameters})
    writer.claim()
    for unit, first in enumerate(range(0, experts, per_shard)):
        with writer.shard(f"experts-{unit:05d}", "fp32") as shard:
            for expert in range(first, min(first + per_shard, experts)):
                thetas = torch.rand(snapshots, parameters, generator=generator(0, "row", expert))
                shard.add(Trajectory(expert, tuple(range(snapshots)), thetas))
            shard.publish({})
    writer.finish()


def memory() -> int:
    """Resident bytes now, not at their peak, behind which an import could hide an index; the peak where unknown."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else resident()


def reading(uri: str, pairs: int) -> dict[str, float]:
    """Segments by plan: the bytes of one and of opening, and the memory that reading them added."""
    before = memory()
    buffer = Buffer(uri)
    opening, rng = buffer.store.read_bytes, generator(0, "pairs")
    for _ in range(pairs):
        expert, first = draw(buffer, rng)
        buffer.segment(expert, first, first + 1)
    read = buffer.store.read_bytes - opening
    return {"bytes": read / pairs, "opening": opening, "memory": memory() - before}


def draw(buffer: Buffer, rng: torch.Generator) -> tuple[int, int]:
    """An expert, and the first epoch of a segment."""
    expert, first = (int(torch.randint(n, (), generator=rng)) for n in (buffer.experts, buffer.last_epoch))
    return expert, first


def scan(buffer: Buffer, expert: int, first: int) -> None:
    """The tar of the expert read from its beginning to the expert that is wanted."""
    with tarfile.open(Path(buffer.store.root) / buffer.shard_of(expert), "r|") as tar:
        for member in tar:
            file = tar.extractfile(member)
            data = file.read() if file else b""
            if member.name == f"{key_of(expert)}.theta.npy":
                rows = np.load(io.BytesIO(data), allow_pickle=False)
                _ = rows[first].copy(), rows[first + 1].copy()
                return


def ways(uri: str) -> dict[str, Timing]:
    """Seconds a segment."""
    buffer, rng = Buffer(uri), generator(0, "pairs")
    size = 2 * 4 * PARAMETERS

    def run_scan() -> float:
        scan(buffer, *draw(buffer, rng))
        return READS["scan"]

    def run_ours() -> float:
        for _ in range(READS["ours"]):
            expert, first = draw(buffer, rng)
            buffer.segment(expert, first, first + 1)
        return READS["ours"]

    def floor() -> float:
        for _ in range(READS["floor"]):
            path = Path(buffer.store.root) / buffer.shard_of(draw(buffer, rng)[0])
            with open(path, "rb", buffering=0) as file:
                start = int(torch.randint(path.stat().st_size - size, (), generator=rng))
                os.pread(file.fileno(), size, start)
        return READS["floor"]

    return interleaved({"scan": run_scan, "ours": run_ours, "floor": floor})


def rows(size: str = "default") -> Iterator[BenchRow]:
    settings = SIZES[size]
    where = f"{settings['experts']} experts x {settings['snapshots']} rows of 1.28 MB"
    with tempfile.TemporaryDirectory() as folder:
        fill(folder, **settings, parameters=PARAMETERS)
        by_way = timings("buffer", "ways", uri=folder)
        read = isolated("buffer", "reading", uri=folder, pairs=20)["bytes"]
    for way, words in (("scan", "by scanning"), ("floor", "as plain reads"), ("ours", "by range reads")):
        yield compared("buffer", f"{where}: a segment {words}", by_way[way], by_way["scan"], floor=by_way["floor"])
    yield BenchRow(bench="buffer", case=f"{where}: bytes read for it", value=read / 1e6, unit="MB")
    added = {}
    for experts in (8, 800):
        with tempfile.TemporaryDirectory() as folder:
            fill(folder, experts, 4, 5_000)
            added[experts] = isolated("buffer", "reading", uri=folder, pairs=20)["memory"]
    case = "memory of 800 experts beyond that of 8"
    yield BenchRow(bench="buffer", case=case, value=(added[800] - added[8]) / 2**20, unit="MB")
