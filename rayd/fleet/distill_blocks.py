"""Independent blocks as runs of their own: one Ray task each, each with its own checkpoints, joined into one artifact.

For objectives whose items know nothing of each other (DWA). A block's run holds the whole set and moves its own images only,
under the same seeds as in one run of all blocks: so the joined set is that run's, to the bit.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from rayd import load
from rayd.config import Run
from rayd.data.load import load as load_data
from rayd.distill.contract import Codec
from rayd.errors import refuse
from rayd.fleet.tasks import each
from rayd.methods.pixel import Pixel
from rayd.run.assemble import assemble
from rayd.run.distill import default_device, distill, finished
from rayd.run.recorder import write_artifact
from rayd.store import Store

log = logging.getLogger(__name__)


def count(run: Run) -> int:
    """Blocks that a run may be mapped into; 0 where its objective is not of that kind."""
    alone = getattr(run.method.objective, "alone", None)
    return len(alone(load_data(run.data).train.spec.classes)) if alone else 0


def of_block(run: Run, number: int) -> Run:
    """The run of one block."""
    classes = load_data(run.data).train.spec.classes
    objective = run.method.objective.alone(classes)[number]
    method = replace(run.method, objective=objective, validate=0, select="last")
    return replace(run, method=method, out=run.at(f"blocks/{number:05d}"), buffer=run.experts_at)


def single(run: Run, number: int) -> int:
    """One block to its end, from wherever it stands; its steps."""
    return sum(1 for _ in distill(of_block(run, number)))


def distill_blocks(run: Run) -> None:
    """Every block that is not done yet, then the artifact of all."""
    store, blocks = Store(run.out), count(run)
    if finished(run, store):
        return
    if run.method.part_names[0] != "pixel":
        raise refuse(
            "method.codec.name", run.method.part_names[0], "pixel, whose blocks share nothing", "use scale.workers"
        )
    left = [n for n in range(blocks) if not finished(one := of_block(run, n), Store(one.out))]
    for number, steps in each(run, single, left):
        log.info("block %d of %d done in %d steps", number, blocks, steps)
    join(run, blocks)


@torch.no_grad()
def join(run: Run, blocks: int) -> None:
    """Each block's images out of its own artifact."""
    assembled = assemble(run, default_device())
    codec: Codec = assembled.codec
    assert isinstance(codec, Pixel)
    items = assembled.objective.plan(0)
    for number in range(blocks):
        theirs = load(of_block(run, number).at("artifact")).codec
        assert isinstance(theirs, Pixel)
        index = assembled.objective.index(codec, items[number])
        codec.pixels[index] = theirs.pixels[index].to(codec.pixels)
    timing = {"blocks": blocks, "steps": run.method.steps}
    write_artifact(assembled, codec, timing, {"select": "last", "blocks": blocks})
