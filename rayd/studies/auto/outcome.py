"""What was tried and what came of it: rows for the table of a search, a page, and the line that computes the set again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rayd.artifact.write import amend
from rayd.config import Run
from rayd.numbers import duration, percent
from rayd.report.shell import article, grid, table, tag
from rayd.store import Store
from rayd.studies.auto.clock import Clock
from rayd.studies.auto.legs import Reached
from rayd.studies.auto.rungs import Search, dials, told
from rayd.studies.auto.shares import Pilot
from rayd.studies.auto.space import STORAGE
from rayd.studies.search.page import bytes_front, curves
from rayd.studies.search.page import trials as table_of_trials
from rayd.studies.search.points import Trial
from rayd.studies.search.space import FAMILY
from rayd.studies.search.trials import FAILED, FINISHED, STOPPED, TrialRow

SPEED = (
    "Which set is chosen depends on the speed of the machine: lengths follow from measured seconds. The line computes the "
    "set again, whatever the speed."
)


def rows(trials: Mapping[int, Trial], legs: Mapping[int, Sequence[Reached]], winner: int | None) -> list[TrialRow]:
    """A row for each trial: what it reached, and why it went no further."""
    out = []
    for number, trial in sorted(trials.items()):
        reached = list(legs.get(number, ()))
        last = reached[-1] if reached else Reached()
        end = FINISHED if number == winner else FAILED if last.failed else STOPPED
        reason = last.failed or (
            "the winner" if number == winner else f"not in the better half of rung {len(reached) - 1}"
        )
        seconds = sum(one.seconds for one in reached)
        size = trial.size
        out.append(
            TrialRow(number, trial.point, size, trial.budget, end, reason, last.curve, last.accuracy, None, 2, seconds)
        )
    return out


def best_default(records: Sequence[TrialRow]) -> TrialRow | None:
    """The best of the methods as they are, but for a storage that the budget forces."""
    plain = [one for one in records if not set(one.point) - {FAMILY, STORAGE} and one.accuracy is not None]
    return max(plain, key=lambda one: one.accuracy or 0.0, default=None)


def again(program: str, words: Sequence[str], own: Sequence[str], run: Run, trial: Trial) -> str:
    """The line of an ordinary run that leaves the same set. `own`: how the keys of the verb itself begin."""
    chosen = ("method=", "expert.", "recipe.steps", "recipe.seeds", "out=", *own)
    kept = [word for word in words if "=" in word and not word.lstrip("+").startswith(chosen)]
    points = {path: value for path, value in trial.point.items() if path != FAMILY}
    method = {name: getattr(run.method, name) for name in ("steps", "validate", "checkpoint", "select")}
    leaves = points | {f"method.{name}": value for name, value in method.items()}
    leaves |= {f"expert.{name}": getattr(run.expert, name) for name in ("experts", "epochs", "keep")}
    leaves |= {"recipe.steps": run.recipe.steps, "recipe.seeds": run.recipe.seeds}
    line = [*kept, f"method={trial.point[FAMILY]}", *(f"{path}={plain(value)}" for path, value in leaves.items())]
    return " ".join([program, *map(shlex.quote, line)])


def note(run: Run, trial: Trial, trials: int, seconds: float, line: str) -> None:
    """How the set was chosen, in its card."""
    chosen = (
        f"Chosen on the validation split as the best of {trials} trials within {duration(seconds)} "
        f"({dials(trial)}, {run.method.steps} steps). {SPEED} `{line}`"
    )

    def update(card: Mapping[str, Any], contents: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, bytes]]:
        return {"claim": {**card["claim"], "chosen": chosen}}, {}

    amend(Store(run.at("artifact")), update)


def plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def text(
    records: Sequence[TrialRow], trials: Mapping[int, Trial], pilots: Mapping[str, Pilot], absent: Mapping[str, str]
) -> str:
    """What was tried, for a terminal."""
    lines = [f"{len(records)} trials of {len({one.point[FAMILY] for one in records})} methods:"]
    for record in sorted(records, key=lambda one: (-(one.accuracy or 0.0), one.number)):
        value = "      -" if record.accuracy is None else f"{100 * record.accuracy:6.1f} %"
        step, size = record.curve[-1][0] if record.curve else 0, record.size
        held = f"{size.images} images, {size.bytes:,} bytes" if size else ""
        lines.append(
            f"  {value}  {dials(trials[record.number])}: {held}, step {step}, {record.seconds:.0f} s; {record.reason}"
        )
    lines += [f"  pilot    {name}: {told(one)}" for name, one in pilots.items()]
    lines += [f"  absent   {name}: {why}" for name, why in absent.items()]
    return "\n".join(lines)


def times(clock: Clock) -> str:
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in clock.stages())
    starts = "" if clock.starts == 1 else f", {clock.starts} starts"
    return f"{duration(clock.used)} of {duration(clock.seconds)}{starts}: {parts}"


def conclude(
    search: Search, trials: Mapping[int, Trial], winner: Trial, absent: Mapping[str, str], scores: str, line: str
) -> None:
    """The outcome and its page, written last: with them the command has ended."""
    clock, pilots, legs = search.clock, search.piloted(), search.reached()
    records = rows(trials, legs, winner.number)
    won = next(record for record in records if record.number == winner.number)
    plain_best = best_default(records)
    tried = text(records, trials, pilots, absent)
    against = ""
    if plain_best is not None:
        value = f"{100 * (plain_best.accuracy or 0.0):.1f} %"
        against = f"best method without changes: {dials(trials[plain_best.number])}, {value} on validation\n"
    outcome = {
        "winner": dials(winner), "accuracy": won.accuracy, "seconds": clock.seconds, "used": clock.used,
        "stages": clock.stages(), "line": line,
        "text": f"{tried}\n{against}{scores}\ntime: {times(clock)}",
    }  # fmt: skip
    search.store.write("index.html", html(records, outcome, tried, scores, pilots).encode())
    search.store.write_json("outcome.json", outcome)


def html(
    records: Sequence[TrialRow], outcome: Mapping[str, Any], tried: str, scores: str, pilots: Mapping[str, Pilot]
) -> str:
    scored = [(record.accuracy, record) for record in records if record.accuracy is not None and record.size]
    rows_of_time = [(name, duration(seconds)) for name, seconds in outcome["stages"]]
    front = bytes_front({"front": [record.flat() for record in records if record.whole]}, scored)
    lead = (
        f"{outcome['winner']}, chosen out of {len(records)} trials within {duration(outcome['seconds'])}: "
        f"{percent(outcome['accuracy'])} on validation, which of the best of many trials is too high. {SPEED}"
    )
    measured = [(name, told(one)) for name, one in pilots.items()]
    return article(
        "The best set within a time",
        lead,
        [tag("pre", outcome["line"])],
        [table(("stage", "time"), rows_of_time), table(("pilot", "measured"), measured)],
        [grid([curves(scored), front])],
        [tag("pre", scores)],
        [table_of_trials(records)],
        [tag("pre", tried)],
    )
