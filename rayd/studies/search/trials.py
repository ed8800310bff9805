"""A trial, and the table of all of them: what each was, how far it came and why it ended.

A trial is ordinary runs, one a seed, that checkpoint and validate at every milestone: its curve lies in its own store,
and a lost trial continues from there. The table is one small file a trial, written when the trial has ended; a
continued search reads these files alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rayd import load
from rayd.config import Run
from rayd.data.images import Spec
from rayd.errors import Failed, Refused
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.score import Score, evaluate
from rayd.machine import device_for, use_threads
from rayd.numbers import summary
from rayd.run.assemble import surroundings
from rayd.run.distill import distill
from rayd.run.recorder import VALIDATION_NETS
from rayd.schema import fingerprint, parse
from rayd.seeds import seed_of
from rayd.store import Store
from rayd.studies.search.asha import Curve, Halving
from rayd.studies.search.points import Size, Trial, make
from rayd.studies.search.space import Point, SearchConfig

FINISHED, STOPPED, FAILED, INFEASIBLE = "finished", "stopped", "failed", "infeasible"
ENDS = (FINISHED, STOPPED, FAILED, INFEASIBLE)


# ---- one trial -----------------------------------------------------------------------------------------------------


def seeded(run: Run, config: SearchConfig) -> list[Run]:
    """The runs of a trial: the same seeds in every trial, so that luck is shared."""
    return [replace(run, seed=seed_of(run.seed, "trial", i), out=run.at(f"seed-{i}")) for i in range(config.seeds)]


def lines_of(run: Run) -> list[dict[str, float]]:
    store = Store(run.out)
    if not store.exists("metrics.jsonl"):
        return []
    return [json.loads(line) for line in store.read("metrics.jsonl").decode().splitlines()]


def curve_of(run: Run, config: SearchConfig) -> Curve:
    """Milestones that every seed has reached, and the mean validation accuracy there."""
    curves = [
        {int(line["step"]): line["val"] for line in lines_of(member) if "val" in line} for member in seeded(run, config)
    ]
    reached = [step for step in config.milestones if all(step in curve for curve in curves)]
    return [(step, fmean(curve[step] for curve in curves)) for step in reached]


def seconds_of(run: Run, config: SearchConfig) -> float:
    return math.fsum(line["seconds"] for member in seeded(run, config) for line in lines_of(member))


def advance(run: Run, config: SearchConfig) -> Iterator[tuple[int, float]]:
    """Distil all seeds of a trial in this process, side by side; yields each new milestone and the accuracy there."""
    walks = [distill(member) for member in seeded(run, config)]
    for milestone in config.milestones:
        curve = dict(curve_of(run, config))
        if milestone not in curve:
            for walk in walks:
                for step in walk:
                    if step.number >= milestone and milestone < config.steps:
                        break
            curve = dict(curve_of(run, config))
        if milestone in curve:
            yield milestone, curve[milestone]


def score(run: Run, config: SearchConfig) -> dict[str, Any]:
    """A finished trial under the whole recipe, on the validation split: what ranks trials. Kept once computed."""
    store = Store(run.out)
    if store.exists("score.json"):
        return dict(store.read_json("score.json"))
    _, scores = scored(seeded(run, config), "val", "trial score")
    row = summary([score.accuracy for score in scores])
    result = {"accuracy": row["mean"], "std": row["std"] if row["n"] > 1 else None, "n": row["n"]}
    store.write_json("score.json", result)
    return result


def scored(runs: Sequence[Run], split: Literal["val", "test"], purpose: str) -> tuple[list[float], list[Score]]:
    """The artifacts of these runs under the whole recipe: the mean of each, and every score."""
    splits, transform, net = surroundings(runs[0])
    device = device_for(runs[0].scale.gpus)
    means, scores = list[float](), list[Score]()
    for run in runs:
        artifact = load(run.at("artifact"), run.methods)
        seeds = [seed_of(run.seed, purpose, i) for i in range(run.recipe.seeds)]
        networks = evaluate(
            run.recipe, net, ImageSet.of(artifact.codec), getattr(splits, split), transform, seeds, device=device,
            step_size=artifact.step_size, compile=run.method.compiled,
        )  # fmt: skip
        means.append(fmean(score.accuracy for score in networks))
        scores += networks
    return means, scores


# ---- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialRow:
    """One line of the table of trials."""

    number: int
    point: Point
    size: Size | None
    budget: str
    end: str
    """finished | stopped | failed | infeasible"""
    reason: str
    curve: tuple[tuple[int, float], ...] = ()
    accuracy: float | None = None
    """On the validation split: of a finished trial under the whole recipe, of another its last validation."""
    std: float | None = None
    n: int = 0
    seconds: float = 0.0

    @property
    def whole(self) -> bool:
        return self.end == FINISHED

    def flat(self) -> dict[str, Any]:
        """One level of columns: the dials, what the trial stored, its result."""
        dials = {
            path: json.dumps(value) if isinstance(value, dict | list | tuple) else value
            for path, value in self.point.items()
        }
        size = self.size or Size({}, 0, 0, 0, 0.0)
        numbers = {f"codec.{name}": value for name, value in size.numbers.items()}
        stored = {"images": size.images, "floats": size.floats, "bytes": size.bytes, "fill": size.fill}
        steps = self.curve[-1][0] if self.curve else 0
        result = {"accuracy": self.accuracy, "std": self.std, "n": self.n, "steps": steps, "seconds": self.seconds}
        end = {"end": self.end, "reason": self.reason}
        return {"trial": self.number, **dials, "budget": self.budget, **numbers, **stored, **result, **end}


class TrialTable:
    """`search/` under the run: plan.json (what is searched), planned/ (a searcher's points), results/, trials/."""

    def __init__(self, base: Run, config: SearchConfig, spec: Spec) -> None:
        self.base, self.config, self.spec = base, config, spec
        config.require()
        self.store = Store(base.out).sub("search")
        self._agree()

    def _agree(self) -> None:
        """A search of the same plan continues; another one is refused with the keys that differ."""
        plan = {
            "base": self.base.fingerprint(),
            "recipe": fingerprint(self.base.recipe),
            "search": self.config.identity(),
        }
        keys = self.store.claim("plan.json", plan)
        if not keys and self.store.read_json("plan.json") != plan:
            keys = ["search.space"]  # a dial less is no key that differs
        if keys:
            raise Refused(
                f"out={self.base.out}: holds another search ({', '.join(keys)} differ); give another out, or ask as "
                "before (search.trials, search.concurrent and search.winner may change)"
            )

    # ---- points --------------------------------------------------------------------------------------------------

    def propose(self, trial: Trial, raw: Mapping[str, Any]) -> None:
        """Keep a searcher's point before it runs: its trial is the same after a restart."""
        self.store.write_json(f"planned/{trial.name}.json", {"point": trial.point, "raw": dict(raw)})

    def proposed(self) -> dict[int, tuple[Trial, dict[str, Any]]]:
        """Trials of a searcher's earlier points by number, each with the searcher's raw values."""
        trials = {}
        for name in self.store.list("planned/"):
            plain, number = self.store.read_json(name), int(Path(name).stem)
            trials[number] = (make(self.base, self.config, self.spec, number, plain["point"]), plain["raw"])
        return trials

    # ---- ends ----------------------------------------------------------------------------------------------------

    def records(self) -> list[TrialRow]:
        return [parse(TrialRow, self.store.read_json(name)) for name in self.store.list("results/")]

    def ended(self) -> set[int]:
        return {int(Path(name).stem) for name in self.store.list("results/")}

    def write(self, record: TrialRow) -> TrialRow:
        """Each trial's end is written once."""
        name = f"results/{record.number:05d}.json"
        if not self.store.exists(name):
            self.store.write_json(name, asdict(record))
        return parse(TrialRow, self.store.read_json(name))

    def finish(self, trial: Trial) -> TrialRow:
        return self._end(trial, FINISHED, "all steps", **score(trial.run, self.config))

    def stop(self, trial: Trial) -> TrialRow:
        curve = curve_of(trial.run, self.config)
        step = curve[-1][0] if curve else 0
        return self._end(trial, STOPPED, f"not among the best one in {self.config.reduction:g} at step {step}")

    def fail(self, trial: Trial, reason: str) -> TrialRow:
        return self._end(trial, FAILED, reason)

    def refuse(self, number: int, point: Point, reason: str) -> TrialRow:
        return self.write(TrialRow(number, point, None, "", INFEASIBLE, reason))

    def _end(self, trial: Trial, end: str, reason: str, **result: Any) -> TrialRow:
        curve = tuple(curve_of(trial.run, self.config))
        if not result and curve:
            result = {"accuracy": curve[-1][1], "n": VALIDATION_NETS * self.config.seeds}
        seconds = seconds_of(trial.run, self.config)
        return self.write(
            TrialRow(trial.number, trial.point, trial.size, trial.budget, end, reason, curve, seconds=seconds, **result)
        )

    # ---- the table -----------------------------------------------------------------------------------------------

    def halving(self, trials: Mapping[int, Trial]) -> Halving:
        """The rungs as the trials so far left them."""
        config = self.config
        halving = Halving(config.grace, config.reduction, config.steps, config.scheduler == "asha")
        ended = {record.number: record for record in self.records()}
        for number, record in ended.items():
            halving.replay(record.budget, number, record.curve)
        for number, trial in trials.items():
            if number not in ended:
                halving.replay(trial.budget, number, curve_of(trial.run, config))
        return halving

    def write_table(self) -> None:
        """All trials as parquet and as JSON lines."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [record.flat() for record in self.records()]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        full = [{key: row.get(key) for key in columns} for row in rows]
        self.store.write("trials.jsonl", "".join(json.dumps(row) + "\n" for row in full).encode())
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([_texts(row, full) for row in full]), sink)
        self.store.write("trials.parquet", sink.getvalue().to_pybytes())


def _texts(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A column of several kinds of value is written as text."""
    out = {}
    for key, value in row.items():
        kinds = {type(other[key]) for other in rows if other[key] is not None}
        mixed = len(kinds) > 1 and not kinds <= {int, float}
        out[key] = str(value) if mixed and value is not None else value
    return out


def line(record: TrialRow) -> str:
    reached = f"{record.accuracy:.4f}" if record.accuracy is not None else "no accuracy"
    dials = ", ".join(f"{path.split('.')[-1]} {value}" for path, value in record.point.items())
    return f"trial {record.number} ({dials}): {record.end}, {reached}, {record.seconds:.0f} s; {record.reason}"


# ---- without Ray ---------------------------------------------------------------------------------------------------


def search_inline(table: TrialTable, trials: Mapping[int, Trial]) -> Iterator[TrialRow]:
    """Every trial that has not ended, one after another, in this process."""
    use_threads(table.base.scale.threads)
    halving = table.halving(trials)
    for number in sorted(set(trials) - table.ended()):
        yield follow(table, trials[number], halving)


def follow(table: TrialTable, trial: Trial, halving: Halving) -> TrialRow:
    """One trial to its end."""
    try:
        for step, value in advance(trial.run, table.config):
            if step < table.config.steps and not halving.survives(trial.budget, trial.number, step, value):
                return table.stop(trial)
        return table.finish(trial)
    except (Refused, Failed) as error:
        return table.fail(trial, str(error))
