"""What a search has to say: the front of accuracy against bytes, how much each dial mattered, the winner as a method.

Everything here is on the validation split, and says how many trials stand behind it: the best of many is too good.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayd.studies.search.trials import ENDS, TrialRow, TrialTable
from rayd.studies.search.winner import method_text, name_of

GROUPS = 4
"""Classes that the values of a numeric dial are sorted into, by rank."""


def front(records: Sequence[TrialRow]) -> list[TrialRow]:
    """Finished trials that no other beats in bytes without losing accuracy; by bytes. Ties: the earlier trial."""
    done = [one for one in records if one.whole and one.size is not None and one.accuracy is not None]
    best, kept = -math.inf, []
    for one in sorted(done, key=lambda r: (r.size.bytes if r.size else 0, -(r.accuracy or 0), r.number)):
        assert one.accuracy is not None
        if one.accuracy > best:
            best = one.accuracy
            kept.append(one)
    return kept


def winners(records: Sequence[TrialRow]) -> dict[str, TrialRow]:
    """The best finished trial of each budget."""
    best: dict[str, TrialRow] = {}
    for one in sorted((r for r in records if r.whole and r.accuracy is not None), key=lambda r: r.number):
        if one.budget not in best or (one.accuracy or 0) > (best[one.budget].accuracy or 0):
            best[one.budget] = one
    return best


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
    first = {record.number: record for record in records if record.curve}
    if not first:
        return []
    step = min(record.curve[0][0] for record in first.values())
    at = [(r, dict(r.curve)[step]) for r in first.values() if step in dict(r.curve)]
    means = {b: _mean([v for r, v in at if r.budget == b]) for b in {r.budget for r, _ in at}}
    centred = [(r, v - means[r.budget]) for r, v in at]
    paths = dict.fromkeys(path for r, _ in centred for path in r.point)
    found = []
    for path in paths:
        having = [(r.point[path], v) for r, v in centred if path in r.point]
        labels = grouped([value for value, _ in having])
        found.append(Importance(path, _explained(labels, [v for _, v in having]), len(having), len(set(labels))))
    return sorted(found, key=lambda one: -one.share)


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
    mean = _mean(values)
    total = math.fsum((v - mean) ** 2 for v in values)
    if n <= k or k < 2 or total <= 0:
        return 0.0
    within = 0.0
    for label in set(labels):
        own = [v for g, v in zip(labels, values, strict=True) if g == label]
        within += math.fsum((v - _mean(own)) ** 2 for v in own)
    return max(0.0, (total - within - (k - 1) * within / (n - k)) / total)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / max(len(values), 1)


def counts(records: Sequence[TrialRow]) -> dict[str, int]:
    return {end: sum(one.end == end for one in records) for end in ENDS}


# ---- written down --------------------------------------------------------------------------------------------------


def conclude(book: TrialTable) -> dict[str, Any]:
    """Tables, front, importance and winners into `search/`; returns what a page needs."""
    records = book.records()
    book.write_table()
    tried = len(records)
    best = winners(records)
    for budget, record in best.items():
        name = "winner" if len(best) == 1 else name_of(budget)
        book.store.write(f"method/{name}.yaml", method_text(book.base, book.config, record, tried).encode())
    told = {
        "trials": tried,
        "ends": counts(records),
        "front": [one.row() for one in front(records)],
        "winners": {budget: one.row() for budget, one in best.items()},
        "importance": [vars(one) for one in importance(records)],
        "steps": book.config.steps,
        "searcher": book.config.searcher,
        "scheduler": book.config.scheduler,
        "recipe": book.base.recipe.name,
    }
    book.store.write_json("outcome.json", told)
    return told


def text(told: Mapping[str, Any]) -> str:
    """The outcome for a terminal."""
    ends = ", ".join(f"{count} {end}" for end, count in told["ends"].items() if count)
    lines = [f"{told['trials']} trials: {ends}", "front (validation accuracy against bytes, finished trials):"]
    hidden = (
        "std",
        "n",
        "steps",
        "seconds",
        "end",
        "reason",
        "budget",
        "images",
        "floats",
        "bytes",
        "fill",
        "accuracy",
        "trial",
    )
    for row in told["front"]:
        std = f" +- {row['std']:.4f}" if row["std"] is not None else ""
        dials = ", ".join(
            f"{k.split('.')[-1]} {v}" for k, v in row.items() if k not in hidden and not k.startswith("codec.")
        )
        lines.append(
            f"  {row['bytes']:>8} bytes  {row['accuracy']:.4f}{std} (n={row['n']})  {dials}  "
            f"[{row['images']} images, {row['fill']:.1%} of {row['budget']}, trial {row['trial']}]"
        )
    shares = ", ".join(f"{one['dial'].split('.')[-1]} {one['share']:.0%}" for one in told["importance"])
    lines.append(f"explained by each dial alone, at the first milestone: {shares or 'nothing to compare'}")
    return "\n".join(lines)
