"""A trial, and the book of all of them: what each was, how far it came and why it ended.

A trial is ordinary runs (one a seed) that checkpoint and validate at every milestone, so its curve lies in its own
store and a lost one goes on from there. The book holds one small file a trial, written once it has ended; a continued
search is told by these files alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rayd import load
from rayd.config import Run
from rayd.data.images import Spec
from rayd.errors import Failed, Refused
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.score import evaluate
from rayd.machine import use_threads
from rayd.run.assemble import surroundings
from rayd.run.distill import default_device, distill
from rayd.schema import fingerprint
from rayd.seeds import seed_of
from rayd.stats import summary
from rayd.store import Store
from rayd.studies.search.asha import Halving
from rayd.studies.search.points import Size, Trial, make
from rayd.studies.search.space import Point, SearchConfig

FINISHED, STOPPED, FAILED, INFEASIBLE = "finished", "stopped", "failed", "infeasible"
ENDS = (FINISHED, STOPPED, FAILED, INFEASIBLE)
Curve = list[tuple[int, float]]


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
    found: list[dict[int, float]] = []
    for one in seeded(run, config):
        found.append({int(line["step"]): line["val"] for line in lines_of(one) if "val" in line})
    common = [step for step in config.milestones if all(step in curve for curve in found)]
    return [(step, math.fsum(curve[step] for curve in found) / len(found)) for step in common]


def seconds_of(run: Run, config: SearchConfig) -> float:
    return math.fsum(line["seconds"] for one in seeded(run, config) for line in lines_of(one))


def advance(run: Run, config: SearchConfig) -> Iterator[tuple[int, float]]:
    """Distil all seeds of a trial in this process, side by side; yields each new milestone and the accuracy there."""
    walks = [distill(one) for one in seeded(run, config)]
    told = 0
    for milestone in config.milestones:
        curve = dict(curve_of(run, config))
        if milestone not in curve:
            for walk in walks:
                for step in walk:
                    if step.number >= milestone and milestone < config.steps:
                        break
            curve = dict(curve_of(run, config))
        if milestone in curve and milestone > told:
            told = milestone
            yield milestone, curve[milestone]


def score(run: Run, config: SearchConfig) -> dict[str, Any]:
    """A finished trial under the whole recipe, on the validation split: what ranks trials. Kept once computed."""
    store = Store(run.out)
    if store.exists("score.json"):
        return dict(store.read_json("score.json"))
    splits, transform, net = surroundings(run)
    scores = []
    for one in seeded(run, config):
        artifact = load(one.at("artifact"))
        seeds = [seed_of(one.seed, "trial score", i) for i in range(run.recipe.seeds)]
        source = ImageSet.of(artifact.codec)
        scores += evaluate(run.recipe, net, source, splits.val, transform, seeds, device=default_device(),
                           step_size=artifact.step_size, compile=run.method.compiled)  # fmt: skip
    told = summary([score.accuracy for score in scores])
    kept = {"accuracy": told["mean"], "std": told["std"] if told["n"] > 1 else None, "n": told["n"]}
    store.write_json("score.json", kept)
    return kept


# ---- the book ------------------------------------------------------------------------------------------------------


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

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "curve": [list(one) for one in self.curve]}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> TrialRow:
        size = Size(**plain["size"]) if plain["size"] else None
        return cls(**{**plain, "size": size, "curve": tuple((int(s), float(v)) for s, v in plain["curve"])})

    def row(self) -> dict[str, Any]:
        """Flat, for a table: every dial, what it stored, what came of it."""
        dials = {
            path: json.dumps(value) if isinstance(value, dict | list | tuple) else value
            for path, value in self.point.items()
        }
        size = self.size or Size({}, 0, 0, 0, 0.0)
        numbers = {f"codec.{name}": value for name, value in size.numbers.items()}
        known = {"images": size.images, "floats": size.floats, "bytes": size.bytes, "fill": size.fill}
        steps = self.curve[-1][0] if self.curve else 0
        came = {"accuracy": self.accuracy, "std": self.std, "n": self.n, "steps": steps, "seconds": self.seconds}
        return {"trial": self.number, **dials, "budget": self.budget, **numbers, **known, **came,
                "end": self.end, "reason": self.reason}  # fmt: skip


class TrialTable:
    """`search/` under the run: plan.json (what is searched), planned/ (points proposed later), results/, trials/."""

    def __init__(self, base: Run, config: SearchConfig, spec: Spec) -> None:
        self.base, self.config, self.spec = base, config, spec
        config.require()
        self.store = Store(base.out).sub("search")
        self._agree()

    def _agree(self) -> None:
        """The same search goes on; another one is refused with what differs."""
        asked: dict[str, Any] = {
            "base": self.base.fingerprint(),
            "recipe": fingerprint(self.base.recipe),
            "search": self.config.identity(),
        }
        if not self.store.exists("plan.json"):
            self.store.write_json("plan.json", asked)
            return
        there = self.store.read_json("plan.json")
        if there == asked:
            return
        keys = sorted(k for k in asked["search"] if there["search"].get(k) != asked["search"][k])
        named = [f"search.{k}" for k in keys] + [k for k in ("base", "recipe") if there[k] != asked[k]]
        raise Refused(
            f"out={self.base.out}: holds another search ({', '.join(named)} differ); give another out, or ask as "
            "before (search.trials, search.concurrent and search.winner may change)"
        )

    # ---- points --------------------------------------------------------------------------------------------------

    def propose(self, trial: Trial, raw: Mapping[str, Any]) -> None:
        """A point that a searcher thought of, kept before it runs: its trial is the same after a restart."""
        self.store.write_json(f"planned/{trial.name}.json", {"point": trial.point, "raw": dict(raw)})

    def proposed(self) -> dict[int, tuple[Trial, dict[str, Any]]]:
        """Trials that a searcher thought of in earlier lives, with its own words for them."""
        found = {}
        for name in self.store.list("planned/"):
            plain, number = self.store.read_json(name), int(Path(name).stem)
            found[number] = (make(self.base, self.config, self.spec, number, plain["point"]), plain["raw"])
        return found

    # ---- ends ----------------------------------------------------------------------------------------------------

    def records(self) -> list[TrialRow]:
        return [TrialRow.of(self.store.read_json(name)) for name in self.store.list("results/")]

    def ended(self) -> set[int]:
        return {int(Path(name).stem) for name in self.store.list("results/")}

    def write(self, record: TrialRow) -> TrialRow:
        """An end is written once and never again."""
        name = f"results/{record.number:05d}.json"
        if not self.store.exists(name):
            self.store.write_json(name, record.plain())
        return TrialRow.of(self.store.read_json(name))

    def finish(self, trial: Trial) -> TrialRow:
        told = score(trial.run, self.config)
        return self._end(trial, FINISHED, "all steps", **told)

    def stop(self, trial: Trial) -> TrialRow:
        curve = curve_of(trial.run, self.config)
        step = curve[-1][0] if curve else 0
        return self._end(trial, STOPPED, f"not among the best one in {self.config.reduction:g} at step {step}")

    def fail(self, trial: Trial, reason: str) -> TrialRow:
        return self._end(trial, FAILED, reason)

    def refuse(self, number: int, point: Point, reason: str) -> TrialRow:
        return self.write(TrialRow(number, point, None, "", INFEASIBLE, reason))

    def _end(self, trial: Trial, end: str, reason: str, **told: Any) -> TrialRow:
        curve = tuple(curve_of(trial.run, self.config))
        if not told and curve:
            told = {"accuracy": curve[-1][1], "n": 2 * self.config.seeds}
        spent = seconds_of(trial.run, self.config)
        return self.write(
            TrialRow(trial.number, trial.point, trial.size, trial.budget, end, reason, curve, seconds=spent, **told)
        )

    # ---- the table -----------------------------------------------------------------------------------------------

    def halving(self, trials: Mapping[int, Trial]) -> Halving:
        """The rungs as all earlier lives of this search left them."""
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

        rows = [record.row() for record in self.records()]
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
        kinds = {type(one[key]) for one in rows if one[key] is not None}
        out[key] = str(value) if len(kinds - {int, float}) > 0 and len(kinds) > 1 and value is not None else value
    return out


def line(record: TrialRow) -> str:
    reached = f"{record.accuracy:.4f}" if record.accuracy is not None else "no accuracy"
    dials = ", ".join(f"{path.split('.')[-1]} {value}" for path, value in record.point.items())
    return f"trial {record.number} ({dials}): {record.end}, {reached}, {record.seconds:.0f} s; {record.reason}"


# ---- without Ray ---------------------------------------------------------------------------------------------------


def search_inline(book: TrialTable, trials: Mapping[int, Trial]) -> Iterator[TrialRow]:
    """Every trial that has not ended, one after another, in this process."""
    use_threads(book.base.scale.threads)
    halving, ended = book.halving(trials), book.ended()
    for number in sorted(set(trials) - ended):
        yield follow(book, trials[number], halving)


def follow(book: TrialTable, trial: Trial, halving: Halving) -> TrialRow:
    """One trial to its end."""
    try:
        for step, value in advance(trial.run, book.config):
            if step < book.config.steps and not halving.survives(trial.budget, trial.number, step, value):
                return book.stop(trial)
        return book.finish(trial)
    except (Refused, Failed) as error:
        return book.fail(trial, str(error))
