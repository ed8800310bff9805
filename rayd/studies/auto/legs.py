"""A stretch of a trial, in this process or in a task: so many seconds further, to a validation and checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from rayd.config import Run
from rayd.errors import Failed, Refused, Transient
from rayd.machine import beat
from rayd.run.checkpoints import Checkpoints
from rayd.run.distill import distill
from rayd.schema import parse, to_dict
from rayd.store import Store
from rayd.studies.auto.shares import Pilot
from rayd.studies.search.asha import Curve
from rayd.studies.search.trials import lines_of

ENDLESS = 10**7
"""Steps of a trial: more than any time holds."""
PATIENCE = 3.0
"""A leg without any validation ends after so many times its seconds."""


@dataclass(frozen=True)
class Leg:
    """A trial, and how many seconds it gets."""

    number: int
    run: Mapping[str, Any]
    """In plain values: it may travel."""
    seconds: float


@dataclass(frozen=True)
class Reached:
    """Where a trial stands after a leg."""

    step: int = 0
    """Of its last validation."""
    accuracy: float | None = None
    """The best so far, on the validation split: of the set that would be kept."""
    curve: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    """That the leg took."""
    failed: str = ""


def interrupted(run: Run, out: str, every: int) -> Run:
    """A trial of a method: its set is validated and kept every so many steps, and the best of them is the one it leaves."""
    steps = {"steps": ENDLESS, "validate": every, "checkpoint": every, "select": "best_val"}
    return replace(run, out=out, method=replace(run.method, **steps))  # type: ignore[arg-type]


def follow(base: Run, leg: Leg) -> Reached:
    """Go on with a trial from where it stands, until another stretch would take it past its seconds."""
    run, began, failed = parse(Run, leg.run), time.monotonic(), ""
    every, last, first = run.method.validate, began, True
    try:
        with closing(distill(run)) as steps:  # type: ignore[type-var]
            for step in steps if leg.seconds > 0 else ():
                now = time.monotonic()
                beat(f"trial {leg.number}, step {step.number}")
                last = now - step.seconds if first else last
                first = False
                if step.number % every == 0:
                    if now - began + (now - last) > leg.seconds:
                        break
                    last = now
                elif now - began > PATIENCE * leg.seconds:
                    break
    except Transient:
        raise
    except (Refused, Failed) as error:
        failed = str(error)
    curve = curve_of(run)
    reached, best = curve[-1][0] if curve else 0, max((v for _, v in curve), default=None)
    return Reached(reached, best, tuple(curve), time.monotonic() - began, failed)


def curve_of(run: Run) -> Curve:
    """Validations up to the newest checkpoint."""
    newest = Checkpoints(Store(run.out).sub("checkpoints")).newest()
    return [(int(line["step"]), line["val"]) for line in lines_of(run) if "val" in line and line["step"] <= newest]


def pilot(base: Run, leg: Leg) -> Pilot:
    """Two steps of a method and a validation."""
    run, began, marks = parse(Run, leg.run), time.monotonic(), list[tuple[float, float]]()
    try:
        with closing(distill(run)) as steps:  # type: ignore[type-var]
            for step in steps:
                marks.append((time.monotonic(), step.seconds))
                beat(f"pilot {leg.number}, step {step.number}")
                if step.number == run.method.validate:
                    break
    except Transient:
        raise
    except (Refused, Failed) as error:
        return Pilot(refused=str(error))
    (first, took), (second, step_s) = marks[0], marks[-1]
    accuracy = max((value for _, value in curve_of(run)), default=0.0)
    return Pilot(max(0.0, first - took - began), step_s, max(0.0, second - first - step_s), accuracy)


def ended(trial: Run, out: str, step: int) -> Run:
    """The run of so many steps that the trial is the beginning of, which ends there: its folder is ready for its artifact.

    A trial's steps do not depend on how many there are to come, so this run is the same as one from its first step.
    """
    run = replace(trial, out=out, method=replace(trial.method, steps=step))
    store = Store(out)
    if not store.exists("artifact/card.json"):
        there = Checkpoints(Store(trial.out).sub("checkpoints"))
        there.copy(Checkpoints(store.sub("checkpoints")), step, {"config": run.identity()})
        lines = Store(trial.out).read("metrics.jsonl")
        store.write("metrics.jsonl", lines)
    return run


def plain(run: Run) -> dict[str, Any]:
    return dict(to_dict(run))
