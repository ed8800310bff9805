"""Independent blocks as runs of their own: one Ray task each, each with its own checkpoints, joined into one artifact.

For objectives whose items know nothing of each other (DWA). A block's run holds the whole set, moves its own images only,
and draws the same seeds as one run of all blocks: the joined set is that run's, to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rayd import load
from rayd.config import Run
from rayd.data.images import Splits
from rayd.data.load import load as load_data
from rayd.distill.contract import Codec
from rayd.errors import refuse
from rayd.fleet.tasks import run_tasks
from rayd.methods.pixel import Pixel
from rayd.run.assemble import assemble
from rayd.run.distill import distill, finished
from rayd.run.recorder import write_artifact
from rayd.schema import parse, to_dict
from rayd.store import Store

log = logging.getLogger(__name__)


def is_parted(run: Run) -> bool:
    """Whether the items of the run's objective know nothing of each other."""
    return hasattr(run.method.objective, "alone")


def block_runs(run: Run, splits: Splits | None = None) -> list[Run]:
    """A run for each block; none where the objective's items depend on each other. `splits`: its data, where loaded."""
    if not is_parted(run):
        return []
    objectives = run.method.objective.alone((splits or load_data(run.data)).train.spec.classes)
    if objectives and run.method.part_names[0] != "pixel":
        raise refuse(
            "method.codec.name", run.method.part_names[0], "pixel, whose blocks share nothing", "use scale.workers"
        )
    methods = [replace(run.method, objective=objective, validate=0, select="last") for objective in objectives]
    return [
        replace(run, method=method, out=run.at(f"blocks/{number:05d}"), buffer=run.experts_at)
        for number, method in enumerate(methods)
    ]


def _distill_block(run: Run, block: dict[str, Any]) -> int:
    """One block, from its last checkpoint to its end; the number of steps taken."""
    return sum(1 for _ in distill(parse(Run, block)))


def distill_blocks(run: Run, blocks: Sequence[Run], splits: Splits | None = None) -> None:
    """Every block that is not done yet, then the artifact of all."""
    if finished(run, Store(run.out)):
        return
    left = [to_dict(block) for block in blocks if not finished(block, Store(block.out))]
    for block, steps in run_tasks(run, "block", _distill_block, left, place="distill"):
        log.info("%s done in %d steps, %d blocks in all", block["out"], steps, len(blocks))
    join(run, blocks, splits)


@torch.no_grad()
def join(run: Run, blocks: Sequence[Run], splits: Splits | None = None) -> None:
    """One artifact with each block's images from the block's own; in the driver, whose machine need not have a GPU."""
    assembled = assemble(run, torch.device("cpu"), splits=splits)
    codec: Codec = assembled.codec
    assert isinstance(codec, Pixel)
    items = assembled.objective.plan(0)
    for block, item in zip(blocks, items, strict=True):
        theirs = load(block.at("artifact"), block.methods).codec
        assert isinstance(theirs, Pixel)
        index = assembled.objective.index(codec, item)
        codec.pixels[index] = theirs.pixels[index].to(codec.pixels)
    timing = {"blocks": len(blocks), "steps": run.method.steps}
    write_artifact(assembled, codec, timing, {"select": "last", "blocks": len(blocks)})
