"""Scores of a synthetic set and its controls, the table of them, and whether the set beats the coresets.

`score` computes every row on the test set, adds one to the artifact's count of test reads, and writes controls.json and
the card.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from rayd.artifact import fields
from rayd.artifact.load import Artifact, load
from rayd.artifact.write import amend, settle
from rayd.config import Run
from rayd.data.load import load as load_data
from rayd.evaluate.row import RowName, image_bytes
from rayd.evaluate.score import Score, check
from rayd.evaluate.verdict import concluded
from rayd.numbers import summary
from rayd.run.rows import CONTROLS, Outcome, RowTask, Scorer, attempt, row_tasks, score_task
from rayd.run.scores import KEPT, KeptScores
from rayd.schema import fingerprint, to_dict
from rayd.store import Store

log = logging.getLogger(__name__)

Outcomes = Iterable[tuple[RowTask, Outcome]]


def score(
    run: Run,
    uri: str,
    controls: Sequence[str] = CONTROLS,
    run_tasks: Callable[..., Outcomes] | None = None,
) -> dict[str, Any]:
    """Score the artifact at `uri` and its controls under the run's recipe. `run_tasks`: the fleet's."""
    store, began = Store(uri), time.monotonic()
    artifact = load(store, run.methods)
    check(run.recipe, artifact.step_size, artifact.teacher)
    scorer = Scorer.of(run, uri, artifact)
    tasks = row_tasks(run, artifact, controls)
    parts: Outcomes = ((task, attempt(scorer.answer, task)) for task in tasks)
    if run_tasks:
        units = [part for task in tasks for part in task.parts(run.scale.gpus)]
        parts = run_tasks(run, "evaluate", score_task, units, uri)
    outcomes = list(whole_tasks(tasks, parts))
    table = score_table(run, artifact, outcomes, len(scorer.train))

    def update(card: Mapping[str, Any], contents: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, bytes]]:
        there = fields.table(contents["controls.json"]) if "controls.json" in contents else {}
        merged = _merged(there, table)
        scores = {f"{row['set']}/{row['net']}/{row['recipe']}": row for row in table["rows"]}
        claim = {**card["claim"], "verdict": merged["verdict"]["overall"], "why": merged["verdict"]["why"]}
        changes = {"scores": {**card["scores"], **scores}, "reads": card["reads"] + 1, "claim": claim}
        return changes, {"controls.json": (json.dumps(merged, indent=1) + "\n").encode()}

    amend(store, update)
    if scorer.kept:
        scorer.kept.clear()
    peak = max((net.memory for _, scores in outcomes if not isinstance(scores, str) for net in scores), default=0)
    timing = {"evaluate_s": time.monotonic() - began, "evaluate_peak": peak}
    store.write_json("timing.json", {**store.facts("timing.json"), **timing})
    return table


def rows_asked(controls: bool | Sequence[str], own: Iterable[str] = ()) -> tuple[str, ...]:
    """All of them, none, or those named; a name that is none is refused before anything is scored. `own`: kinds of one's
    own, of which none is asked unless it is named."""
    if isinstance(controls, bool):
        return CONTROLS if controls else ()
    return tuple(str(RowName.control(name, own)) for name in controls)


def is_scored(run: Run, uri: str, controls: Sequence[str]) -> bool:
    """Whether the artifact's table has the run's recipe and all of these controls; an update left half-way is finished."""
    store = Store(uri)
    if not store.exists("card.json"):
        return False
    settle(store)
    if not store.exists("controls.json"):
        return False
    table = fields.table(store.read("controls.json"))
    if table["recipe"] != to_dict(run.recipe):
        return False
    whole = set(controls) <= {row["set"] for row in table["rows"]} | set(table["skipped"])
    if whole and store.list(KEPT):
        KeptScores(store, run, load(store), load_data(run.data)).clear()
    return whole


def _merged(there: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """A table with the rows of the one that is there, if both are of one protocol; a row of both is the new one."""
    if there.get("protocol") != table["protocol"]:
        return dict(table)
    net, skipped = table["nets"][0], {**there["skipped"], **table["skipped"]}
    rows = {(row["set"], row["net"]): row for part in (there, table) for row in part["rows"]}
    skipped = {name: reason for name, reason in skipped.items() if (name, net) not in rows}
    return {**table, "rows": list(rows.values()), "skipped": skipped, **concluded(list(rows.values()), net)}


def whole_tasks(tasks: Sequence[RowTask], parts: Outcomes) -> Iterator[tuple[RowTask, Outcome]]:
    """The tasks in order, each as soon as it and those before it have all their seeds, with a line of the log."""
    waiting, results = deque(tasks), dict[tuple[RowName, int, int], Score | str]()
    for part, outcome in parts:
        scores: Sequence[Score | str] = [outcome] * len(part.seeds) if isinstance(outcome, str) else outcome
        results |= {(part.row, part.net, seed): score for seed, score in zip(part.seeds, scores, strict=True)}
        while waiting and all((waiting[0].row, waiting[0].net, seed) in results for seed in waiting[0].seeds):
            task = waiting.popleft()
            of_seeds = [results[task.row, task.net, seed] for seed in task.seeds]
            reason = next((score for score in of_seeds if isinstance(score, str)), None)
            scored = [score for score in of_seeds if not isinstance(score, str)]
            if reason is None:
                seconds = fmean(score.seconds for score in scored)
                number = f"{len(tasks) - len(waiting)}/{len(tasks)}"
                log.info("evaluate  %s  %s, %d networks, %.1f s each", number, task.row, len(scored), seconds)
            yield task, scored if reason is None else reason


def score_table(run: Run, artifact: Artifact, outcomes: Outcomes, whole: int) -> dict[str, Any]:
    """Rows with mean, std, n and interval, the rows left out and why, and the verdict. Nothing here depends on time."""
    nets = [net.name + (f"-w{net.width}" if net.width else "") for net in run.recipe.nets or (run.net,)]
    protocol = fingerprint({"recipe": to_dict(run.recipe), "nets": nets, "data": run.data.name})[:12]
    ledger = artifact.card["ledger"]
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for task, outcome in outcomes:
        row = task.row
        if isinstance(outcome, str):
            skipped[str(row)] = outcome
            continue
        images, size = _images(row, artifact, whole), ledger["bytes"]
        if images is not None and row.kind not in ("distilled", "start"):
            size = images * image_bytes(artifact.spec)
        passes = run.recipe.full_epochs if row.kind == "full" else None
        view = row.view + (f", {passes} epochs" if passes else "")
        what = {"set": str(row), "view": view, "budget": row.budget, "images": images, "bytes": size}
        how = {"net": nets[task.net], "recipe": run.recipe.name, "protocol": protocol}
        seeds = {"seed_list": [score.seed for score in outcome]}
        rows.append({**what, **how, **seeds, **summary([score.accuracy for score in outcome])})
    return {
        "rows": rows,
        "skipped": skipped,
        **concluded(rows, nets[0]),
        "protocol": protocol,
        "recipe": to_dict(run.recipe),
        "nets": nets,
        "floats": ledger["floats"],
        "bytes": ledger["bytes"],
        "classes": len(artifact.classes),
    }


def _images(row: RowName, artifact: Artifact, whole: int) -> int | None:
    """Images of a row's set; None for JPEG files, of which as many are taken as fit. `whole`: of the training set."""
    if row.budget in ("jpeg", "best"):
        return None
    if row.is_coreset:
        return row.images(artifact.ledger["floats"], artifact.ledger["bytes"], artifact.spec, whole)
    return whole if row.kind == "full" else len(artifact)
