"""Snapshots of an expert's parameters, and the segments between them that are matched.

Shapes: S snapshots, P floats of one network (running statistics of batch norm at its tail).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """One expert's parameters at the end of an epoch; epoch 0 is the initialisation. `theta_P` is a copy."""

    expert: int
    epoch: int
    theta_P: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)
    """val_accuracy of this snapshot, train_loss of the epoch that led to it."""


@dataclass(frozen=True)
class Segment:
    """One expert's parameters at two epochs: where matching starts, and its target."""

    start_P: Tensor
    end_P: Tensor
    expert: int
    first: int
    last: int

    def to(self, device: torch.device | str) -> Segment:
        return Segment(self.start_P.to(device), self.end_P.to(device), self.expert, self.first, self.last)

    def distance(self) -> Tensor:
        """||end - start||^2 in float32: the divisor of every trajectory loss."""
        return (self.end_P.float() - self.start_P.float()).square().sum()


@dataclass(frozen=True)
class Trajectory:
    """All snapshots of one expert: row i of `thetas_SP` is epoch `epochs[i]`. `meta` holds figures per row."""

    expert: int
    epochs: tuple[int, ...]
    thetas_SP: Tensor
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, snapshots: list[Snapshot], **meta: Any) -> Trajectory:
        """From one expert's snapshots, in the order of their epochs."""
        figures = {
            name: [snapshot.metrics.get(name) for snapshot in snapshots] for name in ("val_accuracy", "train_loss")
        }
        thetas_SP = torch.stack([snapshot.theta_P for snapshot in snapshots])
        return cls(snapshots[0].expert, tuple(s.epoch for s in snapshots), thetas_SP, {**meta, **figures})


def key_of(expert: int) -> str:
    """The WebDataset key of an expert; of fixed width, so that names sort as numbers do."""
    return f"expert-{expert:06d}"
