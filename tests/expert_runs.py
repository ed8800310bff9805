"""Small runs of experts on digits, for the tests of buffer and fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayd.config import Run
from rayd.strict import parse


def digits_run(
    out: Path | str, *, scale: dict[str, Any] | None = None, last: int = 2, seed: int = 0, **expert: Any
) -> Run:
    """Tiny uncompiled experts; epochs 0 to last + 1 can be matched."""
    quick = {"experts": 4, "per_shard": 1, "epochs": 6, "lr": 0.05, "batch": 64, "precision": "fp32", "compiled": False}
    plain = {
        "data": {"name": "digits"},
        "net": {"depth": 2, "width": 8},
        "expert": {**quick, **expert},
        "method": {"codec": {"name": "pixel"}, "objective": {"name": "mtt", "expert_epochs": 2, "last": last}},
        "recipe": {},
        "scale": {"name": "inline", "threads": 1, **(scale or {})},
        "seed": seed,
        "out": str(out),
    }
    return parse(Run, plain)
