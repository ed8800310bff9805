"""The report's tables as CSV and LaTeX: every score, cross-architecture, ledger, plan against actual."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayd.report.facts import Facts

Rows = list[list[Any]]


def texts(facts: Facts) -> dict[str, str]:
    """File name -> text, for the tables that have rows."""
    made: dict[str, tuple[list[str], Rows]] = {
        "scores": scores(facts), "cross": cross(facts), "ledger": ledger(facts), "plan": plan(facts),
    }  # fmt: skip
    out = {}
    for name, (head, rows) in made.items():
        if rows:
            out[f"tables/{name}.csv"] = as_csv(head, rows)
            out[f"tables/{name}.tex"] = as_latex(head, rows)
    return out


def scores(facts: Facts) -> tuple[list[str], Rows]:
    head = ["set", "view", "network", "recipe", "mean", "std", "n", "ci95"]
    rows = facts.table.get("rows", [])
    return head, [[row["set"], row["view"], row["net"], row["recipe"], *(_points(row[k]) for k in ("mean", "std")), row["n"],
                   _points(row["ci95"])] for row in rows]  # fmt: skip


def cross(facts: Facts) -> tuple[list[str], Rows]:
    """Networks down, sets across."""
    rows = facts.table.get("rows", [])
    nets = facts.table.get("nets", [])
    if len(nets) < 2:
        return [], []
    sets = [name for name in ("distilled", "random@floats") if any(row["set"] == name for row in rows)]
    found = {(row["net"], row["set"]): row for row in rows}
    return ["network", *sets], [[net, *(spread(found.get((net, name))) for name in sets)] for net in nets]


def ledger(facts: Facts) -> tuple[list[str], Rows]:
    own = facts.artifact.ledger
    rows = [[row["name"], row["role"], " x ".join(map(str, row["shape"])) or "1", row["floats"], row["dtype"], row["bytes"]]
            for row in own["rows"] + own["beside"]]  # fmt: skip
    return ["tensor", "role", "shape", "numbers", "type", "bytes"], rows


def plan(facts: Facts) -> tuple[list[str], Rows]:
    rows = [[what, f"{planned:.6g}", f"{actual:.6g}", f"{100 * (actual / planned - 1):+.1f} %" if planned else ""]
            for what, planned, actual in facts.plan]  # fmt: skip
    return ["what", "planned", "actual", "error"], rows


def spread(row: Any) -> str:
    return "" if row is None else f"{_points(row['mean'])} ± {_points(row['std'])}"


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def as_csv(head: Sequence[str], rows: Rows) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([head, *rows])
    return out.getvalue()


def as_latex(head: Sequence[str], rows: Rows) -> str:
    def cells(row: Sequence[Any]) -> str:
        return " & ".join(_latex(str(cell)) for cell in row) + r" \\"

    columns = "l" * len(head)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\hline", cells(head), r"\hline", *map(cells, rows), r"\hline",
                      r"\end{tabular}", ""])  # fmt: skip


def _latex(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("±", r"$\pm$")
