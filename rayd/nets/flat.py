"""One network, one vector: the layout that turns theta_P into named views and back.

Trajectories, unrolled steps and optimisers all work on the flat vector; only the network's own arithmetic sees names.
`split` is one operation, so its backward is one concatenation rather than a sum of padded slices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Flat:
    """Names and shapes in the order in which they lie in theta_P."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        return sum(self.lengths)

    def split(self, theta_P: Tensor) -> dict[str, Tensor]:
        """Views of theta_P by name."""
        parts = theta_P.split(self.lengths)
        return {name: part.view(shape) for name, shape, part in zip(self.names, self.shapes, parts, strict=True)}

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """theta_P out of named tensors (every name, in any order)."""
        if set(tensors) != set(self.names):
            raise ValueError(f"names differ from the layout: {sorted(set(tensors) ^ set(self.names))}")
        return torch.cat([tensors[name].reshape(-1) for name in self.names])
