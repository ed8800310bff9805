"""Scores of a synthetic set and its controls, the table of them, and whether the set beats the coresets.

`score` computes every row on the test set, adds one to the artifact's count of test reads, and writes controls.json and
the card.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from rayd.artifact.load import Artifact, load
from rayd.artifact.write import amend, settle
from rayd.config import Run
from rayd.evaluate import dd_ranking
from rayd.evaluate.row import RowName, image_bytes
from rayd.evaluate.score import check
from rayd.run.rows import CONTROLS, Outcome, RowTask, Scorer, images_of, inline, row_tasks
from rayd.schema import fingerprint, to_dict
from rayd.stats import difference, summary
from rayd.store import Store

log = logging.getLogger(__name__)

Outcomes = Iterable[tuple[RowTask, Outcome]]


def score(
    run: Run,
    uri: str,
    controls: Sequence[str] = CONTROLS,
    answers: Callable[[Run, str, Sequence[RowTask]], Outcomes] | None = None,
) -> dict[str, Any]:
    """Score the artifact at `uri` and its controls under the run's recipe. `answers`: those of the fleet, or inline."""
    store, began = Store(uri), time.monotonic()
    artifact = load(store)
    check(run.recipe, artifact.step_size, artifact.teacher)
    scorer = Scorer.of(run, uri, artifact)
    tasks = row_tasks(run, artifact, controls)
    outcomes = list(_logged(answers(run, uri, tasks) if answers else inline(scorer, tasks), len(tasks)))
    table = score_table(run, artifact, outcomes, len(scorer.train))

    def update(card: Mapping[str, Any], contents: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, bytes]]:
        merged = _merged(json.loads(contents.get("controls.json", b"{}")), table)
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


def is_scored(run: Run, uri: str, controls: Sequence[str]) -> bool:
    """Whether the artifact's table has the run's recipe and all of these controls; an update left half-way is finished."""
    store = Store(uri)
    if not store.exists("card.json"):
        return False
    settle(store)
    table = store.facts("controls.json")
    if table.get("recipe") != to_dict(run.recipe):
        return False
    return set(controls) <= {row["set"] for row in table["rows"]} | set(table["skipped"])


def _merged(there: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """A table with the rows of the one that is there, if both are of one protocol; a row of both is the new one."""
    if there.get("protocol") != table["protocol"]:
        return dict(table)
    net, skipped = table["nets"][0], {**there["skipped"], **table["skipped"]}
    rows = {(row["set"], row["net"]): row for part in (there, table) for row in part["rows"]}
    skipped = {name: reason for name, reason in skipped.items() if (name, net) not in rows}
    return {**table, "rows": list(rows.values()), "skipped": skipped, **_concluded(list(rows.values()), net)}


def _logged(outcomes: Outcomes, count: int) -> Iterator[tuple[RowTask, Outcome]]:
    """The same, with a line of the log for each row."""
    for number, (task, outcome) in enumerate(outcomes, 1):
        if not isinstance(outcome, str):
            seconds = fmean(score.seconds for score in outcome)
            log.info("evaluate  %d/%d  %s, %d networks, %.1f s each", number, count, task.row, len(outcome), seconds)
        yield task, outcome


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
        images, size = images_of(row, artifact, whole), ledger["bytes"]
        if images is not None and row.kind not in ("distilled", "start"):
            size = images * image_bytes(artifact.spec)
        what = {"set": str(row), "view": row.view, "budget": row.budget, "images": images, "bytes": size}
        how = {"net": nets[task.net], "recipe": run.recipe.name, "protocol": protocol}
        seeds = {"seed_list": [score.seed for score in outcome]}
        rows.append({**what, **how, **seeds, **summary([score.accuracy for score in outcome])})
    return {
        "rows": rows,
        "skipped": skipped,
        **_concluded(rows, nets[0]),
        "protocol": protocol,
        "recipe": to_dict(run.recipe),
        "nets": nets,
        "floats": ledger["floats"],
        "bytes": ledger["bytes"],
        "classes": len(artifact.classes),
    }


def _concluded(rows: Sequence[Mapping[str, Any]], net: str) -> dict[str, Any]:
    """What the rows of the first network say."""
    first = [row for row in rows if row["net"] == net]
    robust = dd_ranking.of({row["set"]: row["mean"] for row in first})
    return {"verdict": verdict(first), "robust": robust}


def verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Does it beat the coreset? yes: better than each, by more than chance; no: one is better by more than chance.

    Welch's interval of the difference, 95 %. Asked at equal floats and at equal bytes; overall is yes only if both are.
    """
    distilled = next((row for row in rows if row["set"] == "distilled"), None)
    words: dict[str, list[str]] = {"floats": [], "bytes": []}
    why = []
    for row in rows:
        name = RowName.parse(row["set"])
        if distilled is None or not name.is_coreset or name.way:
            continue
        gap, wide = difference(distilled, row)
        word = "yes" if gap - wide > 0 else "no" if gap + wide < 0 else "undecided"
        words["floats" if name.budget == "floats" else "bytes"].append(word)
        why.append(f"{name}: {100 * gap:+.1f} points (95 % ± {100 * wide:.1f}): {word}")
    by_budget = {budget: worst(said) for budget, said in words.items()}
    overall = worst([word for word in by_budget.values() if word != "not asked"])
    return {**by_budget, "overall": overall, "why": why}


def worst(words: Sequence[str]) -> str:
    if not words:
        return "not asked"
    return "no" if "no" in words else "undecided" if "undecided" in words else "yes"
