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
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from rayd.artifact import fields
from rayd.artifact.load import Artifact, load
from rayd.artifact.write import amend, settle
from rayd.config import Run
from rayd.data.builder import cache_folder
from rayd.data.images import Splits
from rayd.data.load import load as load_data
from rayd.evaluate.recipe import FEWEST, RecipeConfig
from rayd.evaluate.row import RowName, image_bytes
from rayd.evaluate.score import Score, check
from rayd.evaluate.verdict import concluded, undecided
from rayd.nets.convnet import NetConfig
from rayd.numbers import summary
from rayd.run.rows import CONTROLS, Outcome, RowTask, Scorer, attempt, row_tasks, score_task
from rayd.run.scores import KEPT, KeptScores, contents, room_of
from rayd.schema import fingerprint, to_dict
from rayd.store import Store

log = logging.getLogger(__name__)

STOPPING = (
    "Networks were added one at a time to the rows that are compared, from {fewest} to at most {seeds}, until each "
    "comparison was decided; the error of 5 % of a comparison is shared among its {looks} looks, so stopping early does "
    "not raise it. Rows beside the comparison have {fewest}."
)
"""What a card says of a verdict under recipe.until=verdict."""

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

    def solve(tasks: Sequence[RowTask]) -> Outcomes:
        """Scores that are kept, and those of the other networks, which are trained here or by the fleet."""
        kept, missing = list[tuple[RowTask, Outcome]](), list[RowTask]()
        for task in tasks:
            scores = scorer.found(task)
            there = tuple(score.seed for score in scores)
            kept.append((replace(task, seeds=there), scores))
            missing.append(replace(task, seeds=tuple(seed for seed in task.seeds if seed not in there)))
        parts: Outcomes = ((task, attempt(scorer.answer, task)) for task in missing if task.seeds)
        if run_tasks:
            units = [part for task in missing if task.seeds for part in task.parts(run.scale.gpus)]
            parts = run_tasks(run, "evaluate", score_task, units, uri)
        return whole_tasks(tasks, chain(kept, parts))

    outcomes = list(all_or_enough(run.recipe, row_tasks(run, artifact, controls), solve))
    table = score_table(run, artifact, outcomes, scorer.splits)

    def update(card: Mapping[str, Any], contents: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, bytes]]:
        there = fields.table(contents["controls.json"]) if "controls.json" in contents else {}
        merged = _merged(there, table)
        scores = {f"{row['set']}/{row['net']}/{row['recipe']}": row for row in table["rows"]}
        verdict = merged["verdict"]
        claim = {**card["claim"], "verdict": verdict["overall"], "why": verdict["why"]}
        if merged["looks"] > 1:
            claim["stopping"] = STOPPING.format(fewest=FEWEST, seeds=run.recipe.seeds, looks=merged["looks"])
        changes = {"scores": {**card["scores"], **scores}, "reads": card["reads"] + 1, "claim": claim}
        return changes, {"controls.json": (json.dumps(merged, indent=1) + "\n").encode()}

    amend(store, update)
    if scorer.kept:
        scorer.kept.clear()
    peak = max((net.memory for _, scores in outcomes if not isinstance(scores, str) for net in scores), default=0)
    timing = {"evaluate_s": time.monotonic() - began, "evaluate_peak": peak}
    store.write_json("timing.json", {**store.facts("timing.json"), **timing})
    return table


def all_or_enough(
    recipe: RecipeConfig, tasks: Sequence[RowTask], solve: Callable[[Sequence[RowTask]], Outcomes]
) -> Outcomes:
    """Every row with all its networks; or, where the recipe asks so, with as many as the verdict takes."""
    if recipe.until == "seeds" or not any(task.row.is_coreset for task in tasks):
        yield from solve(tasks)
        return
    first = solve([replace(task, seeds=task.seeds[:FEWEST]) for task in tasks])
    outcomes = {task: outcome for task, (_, outcome) in zip(tasks, first, strict=True)}
    for n in range(FEWEST, recipe.seeds):
        scored = {task: scores for task, scores in outcomes.items() if task.net == 0 and not isinstance(scores, str)}
        names = undecided([{"set": str(task.row), **_summary(scores)} for task, scores in scored.items()], recipe.looks)
        going_on = [task for task in scored if str(task.row) in names]
        log.info("evaluate  %d networks of a row: %d rows get another", n, len(going_on))
        if not going_on:
            break
        more = solve([replace(task, seeds=task.seeds[n : n + 1]) for task in going_on])
        for task, (_, outcome) in zip(going_on, more, strict=True):
            outcomes[task] = outcome if isinstance(outcome, str) else [*scored[task], *outcome]
    yield from outcomes.items()


def rows_asked(controls: bool | Sequence[str], own: Iterable[str] = ()) -> tuple[str, ...]:
    """All of them, none, or those named; a name that is none is refused before anything is scored. `own`: kinds of one's
    own, of which none is asked unless it is named."""
    if isinstance(controls, bool):
        return CONTROLS if controls else ()
    return tuple(str(RowName.control(name, own)) for name in controls)


def is_scored(run: Run, uri: str, controls: Sequence[str]) -> bool:
    """Whether the artifact's table is of the run's protocol and has all of these controls; an update left half-way is
    finished."""
    store = Store(uri)
    if not store.exists("card.json"):
        return False
    settle(store)
    artifact = load(store, run.methods)
    table, splits = artifact.table, load_data(run.data)
    if table is None or table["protocol"] != protocol(run, splits):
        return False
    if {"until": "seeds", **table["recipe"]} != to_dict(run.recipe):
        return False
    whole = set(controls) <= {row["set"] for row in table["rows"]} | set(table["skipped"])
    if whole and store.list(KEPT):
        KeptScores(store, run, artifact, splits).clear()
    return whole


def _merged(there: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """A table with the rows of the one that is there, if both are of one protocol; a row of both is the new one."""
    if there.get("protocol") != table["protocol"]:
        return dict(table)
    net, skipped = table["nets"][0], {**there["skipped"], **table["skipped"]}
    rows = {(row["set"], row["net"]): row for part in (there, table) for row in part["rows"]}
    skipped = {name: reason for name, reason in skipped.items() if (name, net) not in rows}
    looks = max(there.get("looks", 1), table["looks"])
    return {**table, "rows": list(rows.values()), "skipped": skipped, "looks": looks,
            **concluded(list(rows.values()), net, looks)}  # fmt: skip


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


def _summary(scores: Sequence[Score]) -> dict[str, Any]:
    return summary([score.accuracy for score in scores])


def protocol(run: Run, splits: Splits) -> str:
    """What scores must agree in to stand in one table: recipe, networks, images, code of one's own."""
    recipe = {key: value for key, value in to_dict(run.recipe).items() if key != "until"}
    nets = [to_dict(net) for net in run.recipe.nets or (run.net,)]
    decides = {"recipe": recipe, "nets": nets, "images": contents(splits), "methods": run.own.source}
    return fingerprint(decides)[:12]


def net_names(nets: Sequence[NetConfig]) -> list[str]:
    """Name and width; of networks that have these in common, all that is set."""
    short = [net.name + (f"-w{net.width}" if net.width else "") for net in nets]
    long = [f"{name}-d{net.depth or 'auto'}-{net.norm}" for name, net in zip(short, nets, strict=True)]
    return [long[i] if short.count(name) > 1 else name for i, name in enumerate(short)]


def score_table(run: Run, artifact: Artifact, outcomes: Outcomes, splits: Splits) -> dict[str, Any]:
    """Rows with mean, std, n and interval, the rows left out and why, and the verdict. Nothing here depends on time."""
    nets, whole, of = net_names(run.recipe.nets or (run.net,)), len(splits.train), protocol(run, splits)
    ledger, room = artifact.card["ledger"], room_of(run, artifact)
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for task, outcome in outcomes:
        row = task.row
        if isinstance(outcome, str):
            skipped[str(row)] = placeless(run, outcome)
            continue
        images, size = _images(row, artifact, whole, room), room if row.is_coreset else ledger["bytes"]
        if images is not None and row.kind not in ("distilled", "start"):
            size = images * image_bytes(artifact.spec)
        passes = run.recipe.full_epochs if row.kind == "full" else None
        view = row.view + (f", {passes} epochs" if passes else "")
        what = {"set": str(row), "view": view, "budget": row.budget, "images": images, "bytes": size}
        how = {"net": nets[task.net], "recipe": run.recipe.name, "protocol": of}
        seeds = {"seed_list": [score.seed for score in outcome]}
        rows.append({**what, **how, **seeds, **_summary(outcome)})
    return {
        "rows": rows,
        "skipped": skipped,
        **concluded(rows, nets[0], run.recipe.looks),
        "looks": run.recipe.looks,
        "protocol": of,
        "recipe": to_dict(run.recipe),
        "nets": nets,
        "floats": ledger["floats"],
        "bytes": ledger["bytes"],
        "classes": len(artifact.classes),
    }


def placeless(run: Run, reason: str) -> str:
    """What a card may hold of a message: no folder of this machine above the run's own."""
    places = [
        run.out,
        run.experts_at,
        run.scores_at,
        run.data.path,
        run.methods,
        cache_folder(),
        Path.cwd(),
        Path.home(),
    ]
    folders = {Path(place).expanduser().absolute().parent for place in places if place and "://" not in str(place)}
    for folder in sorted(map(str, folders), key=len, reverse=True):
        reason = reason.replace(f"{folder.rstrip('/')}/", "") if folder != "/" else reason
    return reason


def _images(row: RowName, artifact: Artifact, whole: int, room: int) -> int | None:
    """Images of a row's set; None for JPEG files, of which as many are taken as fit. `whole`: of the training set."""
    if row.budget in ("jpeg", "best"):
        return None
    if row.is_coreset:
        return row.images(artifact.ledger["floats"], room, artifact.spec, whole)
    return whole if row.kind == "full" else len(artifact)
