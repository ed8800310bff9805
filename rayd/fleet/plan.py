"""The probe of a plan where the work will run: one task a stage, with the resources of the run's scale."""

from __future__ import annotations

from typing import Any

from rayd.config import Run
from rayd.fleet.tasks import run_tasks
from rayd.studies.plan import Measured, stages
from rayd.studies.plan.probe import request, run_stage


def measure(run: Run, seconds: float) -> Measured:
    """As rayd.studies.plan.measure: one stage after another, each in a process that ends with it."""
    measured: Measured = {}
    for stage in stages(run):
        ((_, numbers),) = run_tasks(
            run, f"probe of {stage}", _stage, [request(run, stage, seconds)], fresh=True, place=stage
        )
        measured[stage] = numbers
    return measured


def _stage(run: Run, spec: dict[str, Any]) -> dict[str, float]:
    return run_stage(spec)
