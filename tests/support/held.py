"""A job of a distillation that stays in one of its steps, so that whoever kills it finds it at work on any machine.

    HELD_STEP=10 python -m tests.support.held distill WORDS...

Worker 0 stays in that step, its checkpoint written, until it is killed, and beats meanwhile; the others wait for it in
their next sum. Whoever goes on from the checkpoint never comes to that step again.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

STEP = "HELD_STEP"


def hold() -> None:
    """From now on this process stays in that step."""
    from rayd.distill.loop import Step
    from rayd.machine import beat
    from rayd.run import distill as module

    number, original = int(os.environ[STEP]), module.distill

    def distill(run: Any, worker: Any = None) -> Iterator[Step]:
        for step in original(run, worker):
            yield step
            while step.number == number and (worker is None or worker.rank == 0):
                beat(f"step {number}, and stays in it")
                time.sleep(0.05)

    module.distill = distill


def worker(config: Mapping[str, Any]) -> None:
    """A Train worker, which is a process of its own."""
    from rayd.fleet.distill import worker as original
    from tests.support.held import hold

    hold()
    original(config)


if __name__ == "__main__":
    from rayd.fleet import distill as fleet

    hold()
    fleet.worker = worker
    verb = sys.argv.pop(1)
    runpy.run_module(f"jobs.{verb}", run_name="__main__", alter_sys=True)
