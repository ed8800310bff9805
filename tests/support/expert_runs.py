"""Small runs of experts on digits, for the tests of buffer and fleet.

As a program it is a driver that can be killed: `python expert_runs.py OUT KEYS` makes what `digits_run(OUT, **KEYS)` plans.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from rayd.config import Run
from rayd.schema import parse
from rayd.store import Store

os.environ.setdefault("RAY_worker_niceness", "0")
"""Ray's own 15 would starve workers beside whatever else runs here; read when Ray starts, which is later."""


def digits_run(
    out: Path | str,
    *,
    scale: dict[str, Any] | None = None,
    last: int = 2,
    seed: int = 0,
    norm: str = "instance",
    **expert: Any,
) -> Run:
    """Tiny uncompiled experts; epochs 0 to last + 1 can be matched."""
    quick = {
        "experts": 4,
        "per_shard": 1,
        "epochs": 50,
        "lr": 0.05,
        "batch": 64,
        "precision": "fp32",
        "compiled": False,
    }
    plain = {
        "data": {"name": "digits"},
        "net": {"depth": 2, "width": 8, "norm": norm},
        "expert": {**quick, **expert},
        "method": {"codec": {"name": "pixel"}, "objective": {"name": "mtt", "expert_epochs": 2, "last": last}},
        "recipe": {},
        "scale": {"name": "inline", "threads": 1, **(scale or {})},
        "seed": seed,
        "out": "unused" if "://" in str(out) else str(out),
        "buffer": str(out) if "://" in str(out) else None,
    }
    return parse(Run, plain)


def hashes(uri: str) -> dict[str, str]:
    """sha256 of every file of a buffer: shards, markers, head and manifest."""
    store = Store(uri)
    return {name: hashlib.sha256(store.read(name)).hexdigest() for name in store.list()}


def main(out: str, keys: str) -> None:
    from rayd.fleet.experts import build
    from rayd.run.experts import ExpertPlan

    for progress in build(ExpertPlan.open(digits_run(out, **json.loads(keys)))):
        print(progress.line(), progress.pids, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
