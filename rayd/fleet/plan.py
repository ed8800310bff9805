"""The probe of a plan where the work will run: one task a stage, with the resources of the run's scale."""

from __future__ import annotations

from typing import Any

import ray

from rayd.config import Run
from rayd.errors import Failed
from rayd.fleet import cluster
from rayd.studies.plan import Measured, stages
from rayd.studies.plan.probe import request, run_stage


def on_the_cluster(run: Run, seconds: float) -> Measured:
    """As rayd.studies.plan.in_children; each task has a process of its own, which ends with it."""
    cluster.start(run.scale)
    need = cluster.bundle(run.scale)
    cluster.require(need, 1, "probe", run.scale.wait)
    options: dict[str, Any] = {**cluster.options(need), "max_calls": 1, "max_retries": 0}
    task = ray.remote(run_stage).options(**options)
    measured: Measured = {}
    for stage in stages(run):
        waits = task.remote(request(run, stage, seconds))
        done, _ = ray.wait([waits], timeout=run.scale.timeout)
        if not done:
            ray.cancel(waits, force=True)
            limit = f"scale.timeout={run.scale.timeout:g} s"
            raise Failed(f"probe of {stage}: no answer within {limit}; raise it, or probe=0 leaves it out")
        measured[stage] = ray.get(done[0])
    return measured
