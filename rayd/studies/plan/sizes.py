"""Bytes known beforehand: the shards of a buffer and the ledger of an artifact.

A shard is a tar: for each expert two members, `KEY.json` and `KEY.theta.npy`, each a header and data in blocks of 512,
and the whole padded to records of 10,240. Only the figures in `KEY.json` are not known: their text is bounded from both
sides, and where both give the same number of records the size is exact.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rayd.config import Run, words
from rayd.data.images import Spec
from rayd.distill.budget import STEP, Budget, file_bytes
from rayd.distill.storage import Shape, count, pack_shape
from rayd.experts.config import ExpertConfig, ExpertUnit
from rayd.experts.shards import DTYPES

BLOCK, RECORD = 512, 10240
SHORTEST, LONGEST = 0.5, 1.2345678901234567e-05
"""A training loss whose text is as short, and one whose text is as long, as they come."""


def padded(size: int, to: int) -> int:
    return -(-size // to) * to


def row_bytes(parameters: int, storage: str) -> int:
    return parameters * DTYPES[storage].itemsize


def npy_bytes(shape: tuple[int, int], storage: str) -> int:
    """Of the file that holds such an array: the header's length depends on the shape's digits."""
    head = io.BytesIO()
    dtype = DTYPES[storage]
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, header)
    return head.tell() + math.prod(shape) * dtype.itemsize


def accuracy_text(checked: int) -> int:
    """Characters of the longest accuracy out of `checked` images."""
    return max(len(str(round(right / checked, 6))) for right in range(checked + 1))


def facts_bytes(expert: int, seed: int, epochs: tuple[int, ...], checked: int, longest: bool) -> int:
    """Of `KEY.json`, with every figure at its shortest or longest."""
    loss = LONGEST if longest else SHORTEST
    facts = {
        "expert": expert,
        "epochs": list(epochs),
        "seed": seed,
        "val_accuracy": [0.0 if checked else None for _ in epochs],
        "train_loss": [None if epoch == 0 else loss for epoch in epochs],
    }
    more = len(epochs) * (accuracy_text(checked) - 3) if longest and checked else 0
    return len(json.dumps(facts, sort_keys=True).encode()) + more


def shard_bytes(config: ExpertConfig, unit: ExpertUnit, parameters: int, checked: int) -> tuple[int, int]:
    """The least and most bytes of one shard; equal but for rare cases."""
    npy = padded(npy_bytes((len(unit.epochs), parameters), config.storage), BLOCK) + BLOCK
    sizes = []
    for longest in (False, True):
        members = 0
        for expert, seed in zip(unit.experts, unit.seeds, strict=True):
            facts = facts_bytes(expert, seed, unit.epochs, checked, longest)
            members += npy + BLOCK + padded(facts, BLOCK)
        sizes.append(padded(members + 2 * BLOCK, RECORD))
    return sizes[0], sizes[1]


@dataclass(frozen=True)
class LedgerSize:
    """The ledger of an artifact that does not exist yet."""

    floats: int
    bytes: int
    """Of codec.safetensors."""
    ipc: float
    images: int
    """Decoded."""
    by_role: dict[str, int]
    moved: int
    """Numbers of the codec and the step size that a step's gradient has."""


def ledger_size(run: Run, spec: Spec, budget: Budget | None = None) -> LedgerSize:
    """The ledger of the run's artifact, from the codec's shapes; refuses what does not fit the budget."""
    method = run.method
    config: Any = method.codec.fit(budget or run.budget, spec)
    shapes = dict(config.all_shapes(spec)) | (dict(STEP) if learns_step(run) else {})
    files: dict[str, tuple[Shape, torch.dtype]] = {}
    by_role: dict[str, int] = {}
    for name, (shape, role) in shapes.items():
        storage = "fp32" if role == "step" else config.stored_as(name, role)
        files |= {name + suffix: part for suffix, part in pack_shape(shape, storage).items()}
        by_role[role] = by_role.get(role, 0) + count(shape, storage)
    floats = sum(by_role.values())
    moved = sum(math.prod(shape) for shape, _ in shapes.values())
    ipc = floats / (spec.classes * spec.floats)
    size = config.filled(budget or run.budget, spec) or file_bytes(files)
    return LedgerSize(floats, size, ipc, config.decoded(spec), by_role, moved)


def learns_step(run: Run) -> bool:
    """Whether the artifact carries a step size of the inner loop."""
    return "step_size" in words(run.own).objectives[run.method.part_names[1]].gives
