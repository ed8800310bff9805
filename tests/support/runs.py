"""The one builder of small runs, and the artifacts of such runs.

As a program it is a driver that can be killed: `python runs.py OUT KEYS` makes what `digits_run(OUT, **KEYS)` plans.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayd.artifact import write
from rayd.config import Run
from rayd.distill.budget import Stored
from rayd.run.assemble import surroundings
from rayd.schema import parse, to_dict
from rayd.seeds import generator

os.environ.setdefault("RAY_worker_niceness", "0")
"""Ray's own 15 would starve workers beside whatever else runs here; read when Ray starts, which is later."""

PLAIN: dict[str, Any] = {
    "data": {"name": "generated", "size": 8, "channels": 1, "classes": 3, "count": 90, "val": 0.1},
    "net": {"name": "convnet", "width": 8, "depth": 1},
    "expert": {},
    "recipe": {"name": "short", "steps": 40, "batch": 32, "lr": 0.05, "seeds": 3},
    "method": {"codec": {"name": "pixel"}, "objective": {"name": "distribution"}},
}
PARTS = ("data", "net", "codec", "objective")
"""What another name replaces whole."""


TABLE: dict[str, Any] = {
    "rows": [], "skipped": {}, "robust": {}, "recipe": {"name": "short"}, "nets": ["n"], "protocol": "p", "floats": 1,
    "bytes": 1,
    "verdict": {"floats": "not asked", "bytes": "not asked", "overall": "not asked", "why": []},
}  # fmt: skip
"""A score table without a score."""


def merged(plain: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(plain)
    for key, value in changes.items():
        old = plain.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            other = key in PARTS and value.get("name", old.get("name")) != old.get("name")
            value = value if other else merged(old, value)
        both[key] = value
    return both


def small_run(**changes: Any) -> Run:
    """A run on generated images that takes seconds at most, with these keys changed."""
    return parse(Run, merged(PLAIN, changes))


def digits_run(
    out: Path | str, *, last: int = 2, norm: str = "instance", changes: Mapping[str, Any] | None = None, **expert: Any
) -> Run:
    """Tiny uncompiled experts on digits; epochs 0 to last + 1 can be matched. `out` may be the URI of the buffer."""
    quick = {"experts": 4, "per_shard": 1, "epochs": 50, "lr": 0.05, "batch": 64}
    place = {"out": "unused", "buffer": str(out)} if "://" in str(out) else {"out": str(out)}
    plain: dict[str, Any] = {
        "data": {"name": "digits"},
        "net": {"depth": 2, "norm": norm},
        "expert": {**quick, "precision": "fp32", "compiled": False, **expert},
        "method": {"objective": {"name": "mtt", "expert_epochs": 2, "last": last}},
        "scale": {"name": "inline", "threads": 1},
        **place,
    }
    return small_run(**merged(plain, changes or {}))


def an_artifact(
    folder: Path, run: Run, images: Callable[[Tensor], Tensor] | None = None, step_size: float | None = 0.02
) -> Path:
    """An artifact of that run; its images are the real start, or `images` (of the start) in network space."""
    splits, transform, _ = surroundings(run)
    spec = splits.train.spec
    config = run.method.codec.fit(run.budget, spec)
    codec = config.build(spec, generator(run.seed, "codec"))

    def take(c: int, n: int) -> Tensor:
        return transform(splits.train.pixels_NCHW[splits.train.of_class(c).repeat(n)[:n]])

    codec.encode(take, generator(run.seed, "encode"))
    if images is not None:
        with torch.no_grad():
            codec.pixels.copy_(images(codec.pixels.clone()))
    stored = codec.stored()
    if step_size is not None:
        stored["step_size"] = Stored(torch.tensor([step_size]), "step")
    about = write.Provenance(
        codec={"name": run.method.part_names[0], **to_dict(config)},
        spec=spec,
        classes=splits.train.classes,
        sentence=run.method.sentence,
        config=to_dict(run),
        fingerprint=run.fingerprint(),
        data=splits.train.manifest,
        seeds={"run": run.seed},
    )
    write.save(folder, about, codec, stored, transform, {"distill_s": 1.0})
    return folder


def main(out: str, keys: str) -> None:
    from rayd.fleet.experts import build
    from rayd.run.experts import ExpertPlan

    for progress in build(ExpertPlan.open(digits_run(out, **json.loads(keys)))):
        print(progress.line(), progress.pids, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
