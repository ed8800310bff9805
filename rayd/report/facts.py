"""Everything a page is drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rayd.artifact.load import Artifact


@dataclass(frozen=True)
class Facts:
    """An artifact and what its run left beside it."""

    artifact: Artifact
    table: Mapping[str, Any] = field(default_factory=dict)
    """controls.json"""
    steps: list[dict[str, float]] = field(default_factory=list)
    experts: list[dict[str, Any]] = field(default_factory=list)
    """expert, epochs, val_accuracy"""
    timing: Mapping[str, float] = field(default_factory=dict)
    plan: list[tuple[str, float, float]] = field(default_factory=list)
    """what, planned, actual"""
    unrounded: Mapping[str, Tensor] = field(default_factory=dict)
    """index, pixels: some images before their numbers were rounded to be stored."""
    beside: tuple[Facts, ...] = ()
    """Other sets whose scores the figure of bytes has as well."""
    published: tuple[str, ...] = ()
    """Figures of the literature for this method, dataset and size, each with its source and regime."""
