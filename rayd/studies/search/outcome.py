"""What a search has to say: the front of accuracy against bytes, how much each dial mattered, the winner as a method.

Everything here is on the validation split, and says how many trials stand behind it: the best of many is too good.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rayd.studies.search.space import FAMILY, ROOMS, short
from rayd.studies.search.trials import ENDS, TrialRow, TrialTable
from rayd.studies.search.winner import method_text, name_of

GROUPS = 4
"""Classes that the values of a numeric dial are sorted into, by rank."""


def finished(records: Sequence[TrialRow]) -> list[tuple[float, TrialRow]]:
    """Accuracy and record of the trials that ran to their end, by number."""
    ordered = sorted(records, key=lambda record: record.number)
    return [(record.accuracy, record) for record in ordered if record.whole and record.accuracy is not None]


def front(records: Sequence[TrialRow]) -> list[TrialRow]:
    """Finished trials that no other beats in bytes without losing accuracy; by bytes. Ties: the earlier trial."""
    sized = [(record.size.bytes, -accuracy, record) for accuracy, record in finished(records) if record.size]
    least, rows = math.inf, []
    for _, loss, record in sorted(sized, key=lambda entry: entry[:2]):
        if loss < least:
            least = loss
            rows.append(record)
    return rows


def winners(records: Sequence[TrialRow]) -> dict[str, TrialRow]:
    """The best finished trial of each budget. Ties: the earlier trial."""
    best: dict[str, tuple[float, TrialRow]] = {}
    for accuracy, record in finished(records):
        if record.budget not in best or accuracy > best[record.budget][0]:
            best[record.budget] = accuracy, record
    return {budget: record for budget, (_, record) in best.items()}


@dataclass(frozen=True)
class Importance:
    """How much of the spread of accuracy one dial explains by itself."""

    dial: str
    share: float
    """epsilon squared: explained share of the variance, less what as many groups would explain by chance; 0 to 1"""
    n: int
    groups: int


def importance(records: Sequence[TrialRow]) -> list[Importance]:
    """Of every dial, at the first milestone, which all trials reach: no effect of early stopping in it.

    Main effects only: what two dials do together is in nobody's share. Trials of several budgets are compared within
    their budget.
    """
    effects = centred([record for record in records if record.curve])
    rows = []
    for path in dict.fromkeys(path for record, _ in effects for path in record.point):
        values = [(record.point[path], effect) for record, effect in effects if path in record.point]
        labels = grouped([value for value, _ in values])
        share = _explained(labels, [effect for _, effect in values])
        rows.append(Importance(path, share, len(values), len(set(labels))))
    return sorted(rows, key=lambda row: -row.share)


def centred(records: Sequence[TrialRow]) -> list[tuple[TrialRow, float]]:
    """Accuracy of each trial at the first milestone, less the mean of its budget."""
    step = min((record.curve[0][0] for record in records), default=0)
    reached = [(record, dict(record.curve)[step]) for record in records if step in dict(record.curve)]
    by_budget: dict[str, list[float]] = {}
    for record, accuracy in reached:
        by_budget.setdefault(record.budget, []).append(accuracy)
    means = {budget: fmean(values) for budget, values in by_budget.items()}
    return [(record, accuracy - means[record.budget]) for record, accuracy in reached]


def grouped(values: Sequence[Any]) -> list[int]:
    """A group number for each value: each its own where few differ, quarters by rank where many numbers do."""
    distinct = sorted(set(map(json.dumps, values)))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numeric or len(distinct) <= GROUPS:
        return [distinct.index(json.dumps(value)) for value in values]
    ordered = sorted(set(values))
    return [ordered.index(value) * GROUPS // len(ordered) for value in values]


def _explained(labels: Sequence[int], values: Sequence[float]) -> float:
    n, k = len(values), len(set(labels))
    total = _squares(values)
    if n <= k or k < 2 or total <= 0:
        return 0.0
    groups: dict[int, list[float]] = {}
    for label, value in zip(labels, values, strict=True):
        groups.setdefault(label, []).append(value)
    within = sum(_squares(group) for group in groups.values())
    return max(0.0, (total - within - (k - 1) * within / (n - k)) / total)


def _squares(values: Sequence[float]) -> float:
    """Sum of squared differences from the mean."""
    mean = fmean(values)
    return math.fsum((value - mean) ** 2 for value in values)


# ---- written down --------------------------------------------------------------------------------------------------


def conclude(table: TrialTable) -> dict[str, Any]:
    """Tables, front, importance and winners into `search/`; returns what a page needs."""
    records = table.records()
    table.write_table()
    best = winners(records)
    for budget, record in best.items():
        name = "winner" if len(best) == 1 else name_of(budget)
        table.store.write(f"method/{name}.yaml", method_text(table.base, table.config, record, len(records)).encode())
    outcome = {
        "trials": len(records),
        "ends": {end: sum(record.end == end for record in records) for end in ENDS},
        "front": [record.flat() for record in front(records)],
        "winners": {budget: record.flat() for budget, record in best.items()},
        "importance": [vars(row) for row in importance(records)],
        "steps": table.config.steps,
        "searcher": table.config.searcher,
        "scheduler": table.config.scheduler,
        "recipe": table.base.recipe.name,
    }
    table.store.write_json("outcome.json", outcome)
    return outcome


def text(outcome: Mapping[str, Any]) -> str:
    """The outcome for a terminal."""
    ends = ", ".join(f"{count} {end}" for end, count in outcome["ends"].items() if count)
    lines = [f"{outcome['trials']} trials: {ends}", "front (validation accuracy against bytes, finished trials):"]
    for row in outcome["front"]:
        std = "" if row["std"] is None else f" +- {row['std']:.4f}"
        dials = ", ".join(f"{short(path)} {row[path]}" for path in row if path == FAMILY or path.startswith(ROOMS))
        lines.append(
            f"  {row['bytes']:>8} bytes  {row['accuracy']:.4f}{std} (n={row['n']})  {dials}  "
            f"[{row['images']} images, {row['fill']:.1%} of {row['budget']}, trial {row['trial']}]"
        )
    shares = ", ".join(f"{short(row['dial'])} {row['share']:.0%}" for row in outcome["importance"])
    lines.append(f"explained by each dial alone, at the first milestone: {shares or 'nothing to compare'}")
    return "\n".join(lines)
