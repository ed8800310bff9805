"""The table: a synthetic set's scores beside its controls, and the verdict in plain words.

`score` is what jobs.evaluate does: it asks, counts that the test set was read, and seals table and scores into the
artifact (controls.json, the card).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import rayd
from rayd.artifact.load import Artifact, reader
from rayd.artifact.write import amend
from rayd.config import Run
from rayd.data.load import load as load_data
from rayd.evaluate import dd_ranking
from rayd.evaluate.score import Score, check
from rayd.run.rows import CONTROLS, RowTask, Scorer, inline, row_tasks
from rayd.schema import fingerprint, to_dict
from rayd.stats import difference, summary
from rayd.store import Store

log = logging.getLogger(__name__)

Answers = Iterable[tuple[RowTask, list[Score] | str]]
CORESETS = ("random", "herding", "kcentre")


def score(
    run: Run,
    uri: str,
    controls: Sequence[str] = CONTROLS,
    ask: Callable[[Run, str, Sequence[RowTask]], Answers] | None = None,
) -> dict[str, Any]:
    """Score the artifact at `uri` and its controls under the run's recipe. `ask`: fleet.score.answers, or here."""
    artifact = rayd.load(uri)
    check(run.recipe, artifact.step_size, _teacher(artifact))
    asks = row_tasks(run, artifact, controls)
    began = time.monotonic()
    given = []
    for answered, said in ask(run, uri, asks) if ask else inline(Scorer.of(run, uri), asks):
        given.append((answered, said))
        if not isinstance(said, str):
            each = fmean(one.seconds for one in said)
            log.info(
                "evaluate  %d/%d  %s, %d networks, %.1f s each", len(given), len(asks), answered.row, len(said), each
            )
    taken = time.monotonic() - began
    made = table(run, artifact, given, len(load_data(run.data).train))
    store = Store(uri)
    held = {key: one for key, one in artifact.card["scores"].items() if one.get("protocol") != made["protocol"]}
    scores = {**held, **{f"{row['set']}/{row['net']}/{row['recipe']}": row for row in made["rows"]}}
    claim = {**artifact.card["claim"], "verdict": made["verdict"]["overall"], "why": made["verdict"]["why"]}
    changes = {"scores": scores, "reads": artifact.card["reads"] + 1, "claim": claim}
    amend(reader(store), store.write, changes, {"controls.json": (json.dumps(made, indent=1) + "\n").encode()})
    peak = max((one.memory for _, scores in given if not isinstance(scores, str) for one in scores), default=0)
    store.write_json("timing.json", {**store.facts("timing.json"), "evaluate_s": taken, "evaluate_peak": peak})
    return made


def table(run: Run, artifact: Artifact, answers: Answers, whole: int) -> dict[str, Any]:
    """Rows with mean, std, n and interval, what was left out and why, and the verdict. Nothing here depends on time."""
    nets = [net.name + (f"-w{net.width}" if net.width else "") for net in run.recipe.nets or (run.net,)]
    protocol = fingerprint({"recipe": to_dict(run.recipe), "nets": nets, "data": run.data.name})[:12]
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for ask, given in answers:
        if isinstance(given, str):
            skipped[ask.row] = given
            continue
        name, _, budget = ask.row.partition("@")
        name, budget = name.partition("/")[0], budget.partition("/")[0]
        view = {"raw": "8-bit", "jpeg": "jpeg"}.get(budget, "8-bit" if name == "distilled-8bit" else "exact")
        images, taken = room(ask.row, artifact, whole)
        who = {"set": ask.row, "view": view, "budget": budget, "images": images, "bytes": taken, "net": nets[ask.net]}
        how = {"recipe": run.recipe.name, "protocol": protocol, "seed_list": [one.seed for one in given]}
        rows.append({**who, **how, **summary([one.accuracy for one in given])})
    first = [row for row in rows if row["net"] == nets[0]]
    own = artifact.card["ledger"]
    robust_scores = dd_ranking.of({row["set"]: row["mean"] for row in first})
    about = {"robust": robust_scores, "protocol": protocol, "recipe": to_dict(run.recipe), "nets": nets}
    size = {"floats": own["floats"], "bytes": own["bytes"], "classes": len(artifact.classes)}
    return {"rows": rows, "skipped": skipped, "verdict": verdict(first), **about, **size}


def room(row: str, artifact: Artifact, whole: int) -> tuple[int | None, int]:
    """How many images a row's set has (None: as many as fitted) and its bytes, real ones as 8-bit with a byte a label."""
    row = row.partition("/")[0]
    floats, size = artifact.card["ledger"]["floats"], int(artifact.card["ledger"]["bytes"])
    one, classes = artifact.spec.floats + 1, len(artifact.classes)
    images = {"distilled-8bit": len(artifact), "full": whole}.get(row)
    if row.endswith("@floats"):
        images = min(max(round(floats / artifact.spec.floats), classes), whole)
    elif row.endswith("@raw"):
        images = min(max(size // one, classes), whole)
    if images is not None:
        return images, images * one
    return None if row.endswith("@jpeg") else len(artifact), size


def verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Does it beat the coreset? yes: better than each, by more than chance; no: one is better by more than chance.

    Welch's interval of the difference, 95 %. Asked at equal floats and at equal bytes; overall is yes only if both are.
    """
    own = next((row for row in rows if row["set"] == "distilled"), None)
    by: dict[str, list[str]] = {"floats": [], "bytes": []}
    why = []
    for row in rows:
        kind, _, budget = row["set"].partition("@")
        if own is None or kind not in CORESETS or "/" in budget:
            continue
        gap, wide = difference(own, row)
        word = "yes" if gap - wide > 0 else "no" if gap + wide < 0 else "undecided"
        by["floats" if budget == "floats" else "bytes"].append(word)
        why.append(f"{row['set']}: {100 * gap:+.1f} points (95 % ± {100 * wide:.1f}): {word}")
    words = {name: worst(found) for name, found in by.items()}
    return {**words, "overall": worst([word for word in words.values() if word != "not asked"]), "why": why}


def worst(words: Sequence[str]) -> str:
    if not words:
        return "not asked"
    return "no" if "no" in words else "undecided" if "undecided" in words else "yes"


def _teacher(artifact: Artifact) -> object:
    return next((one for one in artifact.stored.values() if one.role == "teacher"), None)
