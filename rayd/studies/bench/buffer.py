"""Reading segments: milliseconds, bytes and memory, against scanning the shard as a WebDataset does."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rayd.experts.buffer import Buffer, BufferWriter
from rayd.experts.trajectory import Trajectory, key_of
from rayd.seeds import generator
from rayd.store import Store
from rayd.studies.bench import Row, isolated, resident

PARAMETERS = 320_010
"""Of ConvNet-3 with 128 channels on CIFAR-10: 1.28 MB a row."""
SIZES = {
    "default": {"experts": 8, "snapshots": 11, "pairs": 40},
    "full": {"experts": 16, "snapshots": 51, "pairs": 200},
}


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


def held() -> int:
    """ResidentInputs bytes now, not at their peak, behind which an import could hide an index; the peak where unknown."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else resident()


def reading(uri: str, pairs: int) -> dict[str, float]:
    """Segments by plan: milliseconds and bytes of one, and the memory that reading them added."""
    before = held()
    buffer = Buffer(uri)
    opened, rng = buffer.store.read_bytes, generator(0, "pairs")
    began = time.perf_counter()
    for _ in range(pairs):
        expert = int(torch.randint(buffer.experts, (), generator=rng))
        first = int(torch.randint(buffer.last_epoch, (), generator=rng))
        buffer.segment(expert, first, first + 1)
    seconds = time.perf_counter() - began
    read = buffer.store.read_bytes - opened
    return {"ms": seconds / pairs * 1e3, "bytes": read / pairs, "opening": opened, "memory": held() - before}


def scanning(uri: str, pairs: int) -> dict[str, float]:
    """The same out of a tar read from its beginning to the expert that is wanted."""
    import io
    import tarfile

    import numpy as np

    buffer, rng = Buffer(uri), generator(0, "pairs")
    began = time.perf_counter()
    for _ in range(pairs):
        expert = int(torch.randint(buffer.experts, (), generator=rng))
        first = int(torch.randint(buffer.last_epoch, (), generator=rng))
        shard = buffer.shard_of(expert)
        with tarfile.open(Path(buffer.store.root) / shard, "r|") as tar:
            for member in tar:
                file = tar.extractfile(member)
                data = file.read() if file else b""
                if member.name == f"{key_of(expert)}.theta.npy":
                    rows = np.load(io.BytesIO(data), allow_pickle=False)
                    _ = rows[first].copy(), rows[first + 1].copy()
                    break
    return {"ms": (time.perf_counter() - began) / pairs * 1e3}


def rows(size: str = "default") -> Iterator[Row]:
    s: dict[str, Any] = SIZES[size]
    where = f"{s['experts']} experts x {s['snapshots']} snapshots of 1.28 MB"
    with tempfile.TemporaryDirectory() as folder:
        fill(folder, s["experts"], s["snapshots"], PARAMETERS)
        ours = isolated("buffer", "reading", uri=folder, pairs=s["pairs"])
        plain = isolated("buffer", "scanning", uri=folder, pairs=max(4, s["pairs"] // 10))
    yield Row("buffer", f"{where}: a segment by scanning", plain["ms"], "ms", 1.0)
    yield Row("buffer", f"{where}: a segment by range reads", ours["ms"], "ms", plain["ms"] / ours["ms"])
    yield Row("buffer", f"{where}: bytes read for it", ours["bytes"] / 1e6, "MB")
    memory = {}
    for experts in (8, 800):
        with tempfile.TemporaryDirectory() as folder:
            fill(folder, experts, 4, 5_000)
            memory[experts] = isolated("buffer", "reading", uri=folder, pairs=20)["memory"]
    yield Row("buffer", "memory of 800 experts beyond that of 8", (memory[800] - memory[8]) / 2**20, "MB")
