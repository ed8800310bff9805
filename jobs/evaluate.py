"""Score an artifact under a named recipe beside its controls, read the test set once, seal the table into the card.

`verify=ARTIFACT` recomputes that artifact's claim and ledger from its files and the data alone, and says what holds.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.compose import Asked, command

KEYS = "jobs.evaluate:Keys"


@dataclass(frozen=True)
class Keys:
    artifact: str | None = None
    """Folder or URI of an artifact; null: OUT/artifact."""
    verify: str | None = None
    """Folder or URI of an artifact whose claim is to be recomputed: holds or not, and where."""
    controls: bool | tuple[str, ...] = True
    """Random real, coreset, start and full data under the same recipe; or some: [start, random@floats]."""


def act(asked: Asked) -> int:
    if asked.own.verify:
        return verified(asked)
    at = asked.own.artifact or asked.run.at("artifact")
    scored(asked, at, asked.own.controls)
    print(table(at))
    print(f"next: {asked.line('report')}")
    return 0


def scored(asked: Asked, at: str, controls: bool | Sequence[str] = True) -> bool:
    """Score the artifact; false where its card holds this recipe's table already."""
    from rayd.run.cost import keep
    from rayd.run.evaluate import is_scored, rows_asked, score
    from rayd.store import Store

    run, store, rows = asked.run, Store(at), rows_asked(controls)
    if is_scored(run, at, rows):
        return False
    if run.scale.name == "inline":
        score(run, at, rows)
    else:
        from rayd.fleet.tasks import run_tasks

        score(run, at, rows, run_tasks)
    keep(run, store)
    return True


def verified(asked: Asked) -> int:
    from rayd.errors import Failed
    from rayd.run.verify import verify

    own_data = any(word.startswith("data") for word in asked.words)
    findings = []
    for finding in verify(
        asked.own.verify, asked.run if own_data else None, methods=asked.run.methods, gpus=asked.run.scale.gpus
    ):
        findings.append(finding)
        print(finding, flush=True)
    broken = [finding.what for finding in findings if not finding.holds]
    if broken:
        raise Failed(f"{asked.own.verify}: the claim does not hold: {', '.join(broken)}")
    print(f"rayd: {asked.own.verify}: the claim holds")
    return 0


def table(at: str) -> str:
    """The scores and the verdict, as text."""
    from rayd.artifact import fields
    from rayd.store import Store

    scores = fields.table(Store(at).read("controls.json"))
    lines = [f"{'set':<21}{'net':<16}{'test accuracy':>16}{'n':>4}{'95 %':>8}"]
    lines += [_row(row) for row in sorted(scores["rows"], key=lambda row: (row["net"], -row["mean"]))]
    lines += [f"{name:<21}left out: {why.split('. ')[0]}" for name, why in scores["skipped"].items()]
    size = f"{scores['floats']:,} floats, {scores['bytes']:,} bytes"
    verdict = scores["verdict"]
    recipe = scores["recipe"]
    length = f"{recipe['epochs']} epochs" if recipe.get("epochs") else f"{recipe['steps']} steps of every set"
    lines += [f"{size}; recipe {recipe['name']}, {length}"]
    robust = [f"{name.upper()} {scores['robust'][name]:.3f}" for name in ("lrs", "ars") if name in scores["robust"]]
    lines += [f"robust scores, 0 to 1: {', '.join(robust)}"] if robust else []
    return "\n".join([*lines, *(f"  {why}" for why in verdict["why"]), f"beats the coreset: {verdict['overall']}"])


def _row(row: Mapping[str, Any]) -> str:
    score = f"{100 * row['mean']:.1f} +- {100 * row['std']:.1f}"
    return f"{row['set']:<21}{row['net']:<16}{score:>16}{row['n']:>4}{100 * row['ci95']:>8.1f}"


if __name__ == "__main__":
    sys.exit(command("evaluate", __doc__, act, KEYS))
