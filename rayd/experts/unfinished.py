"""Finished epochs of a unit whose shard is not written yet: losing its worker costs no more than the epoch at work.

`unfinished/experts-00012-p1-e0007.npz` holds the snapshots of one group of experts since the file before it, and what
training goes on from: numbers in fp32, read without pickle. When the shard is committed, they are removed.

Shapes: S snapshots, K experts of a group, P parameters.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayd.errors import Failed, Transient
from rayd.schema import fields, from_json
from rayd.store import Store
from rayd.store.arrays import npz, npz_names

FOLDER = "unfinished"
EVERY = 5.0
"""Seconds between two files, at least: epochs shorter than that are cheaper to repeat than to write."""
FACTS = {
    "plan": Any, "after": int, "epochs": list[int], "accuracies": list[list[float] | None], "losses": list[list[float]],
}  # fmt: skip


@dataclass
class Block:
    """Some epochs of a group, the last of them `epochs[-1]`."""

    after: int
    """The last epoch of the block before; -1: none."""
    epochs: list[int]
    thetas_SKP: Tensor
    accuracies: list[list[float] | None]
    losses: list[list[float]]
    """Of every expert in every epoch so far."""
    velocity_KP: Tensor | None


class Unfinished:
    """The epochs of one unit in the store. Those of another plan, or damaged ones, do not count."""

    def __init__(self, store: Store, unit: str, plan: Mapping[str, Any]) -> None:
        self.store, self.unit = store.sub(FOLDER), unit
        self.plan = json.loads(json.dumps(plan))
        self.waiting: list[tuple[int, Tensor, list[float] | None]] = []
        self.after, self.written = -1, time.monotonic()

    def read(self, group: int) -> list[Block]:
        """Every block of a group, each going on where the one before ended."""
        blocks: list[Block] = []
        for name in self.store.list(f"{self.unit}-p{group}-"):
            block = self._block(name)
            if block is None or block.after != (blocks[-1].epochs[-1] if blocks else -1):
                break
            blocks.append(block)
        self.waiting, self.after = [], blocks[-1].epochs[-1] if blocks else -1
        return blocks

    def add(
        self,
        group: int,
        epoch: int,
        theta_KP: Tensor,
        velocity_KP: Tensor | None,
        losses: list[list[float]],
        accuracies: list[float] | None,
    ) -> None:
        """An epoch that has ended; written with those before it, but not too often."""
        self.waiting.append((epoch, theta_KP, accuracies))
        if time.monotonic() - self.written < EVERY:
            return
        facts = {
            "plan": self.plan,
            "after": self.after,
            "epochs": [epoch for epoch, _, _ in self.waiting],
            "accuracies": [accuracies for _, _, accuracies in self.waiting],
            "losses": losses,
        }
        arrays = {"facts": np.array(json.dumps(facts)), "thetas": torch.stack([t for _, t, _ in self.waiting]).numpy()}
        if velocity_KP is not None:
            arrays["velocity"] = velocity_KP.cpu().numpy()
        data = io.BytesIO()
        np.savez(data, allow_pickle=False, **arrays)
        self.store.write(f"{self.unit}-p{group}-e{epoch:04d}.npz", data.getvalue())
        self.waiting, self.after, self.written = [], epoch, time.monotonic()

    def clear(self) -> None:
        for name in self.store.list(f"{self.unit}-"):
            self.store.delete(name)

    def _block(self, name: str) -> Block | None:
        try:
            file = io.BytesIO(self.store.read(name))
            facts = fields(from_json(str(npz(file, "facts"))), FACTS)
            thetas_SKP = torch.from_numpy(npz(file, "thetas"))
            velocity_KP = torch.from_numpy(npz(file, "velocity")) if "velocity" in npz_names(file) else None
        except Transient:
            raise
        except (Failed, ValueError, TypeError):
            return None
        if facts["plan"] != self.plan or not facts["epochs"] or len(facts["epochs"]) != len(thetas_SKP):
            return None
        figures = {name: facts[name] for name in FACTS if name != "plan"}
        return Block(thetas_SKP=thetas_SKP, velocity_KP=velocity_KP, **figures)
