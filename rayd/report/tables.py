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
    out = {}
    for name, table in (("scores", scores), ("cross", cross), ("ledger", ledger), ("plan", plan)):
        head, rows = table(facts)
        if rows:
            out[f"tables/{name}.csv"] = as_csv(head, rows)
            out[f"tables/{name}.tex"] = as_latex(head, rows)
    return out


def scores(facts: Facts) -> tuple[list[str], Rows]:
    head = ["set", "view", "network", "recipe", "mean", "std", "n", "ci95"]
    rows = facts.table.get("rows", [])
    shares = ("mean", "std", "ci95")
    return head, [
        [points(row[key]) if key in shares else row[key] for key in ("set", "view", "net", *head[3:])] for row in rows
    ]


def cross(facts: Facts) -> tuple[list[str], Rows]:
    """Networks down, sets across."""
    rows = facts.table.get("rows", [])
    nets = facts.table.get("nets", [])
    if len(nets) < 2:
        return [], []
    sets = [name for name in ("distilled", "random@floats") if any(row["set"] == name for row in rows)]
    by_name = {(row["net"], row["set"]): row for row in rows}
    return ["network", *sets], [[net, *(spread(by_name.get((net, name))) for name in sets)] for net in nets]


def ledger(facts: Facts) -> tuple[list[str], Rows]:
    whole = facts.artifact.ledger
    rows = [[row["name"], row["role"], " x ".join(map(str, row["shape"])) or "1", row["floats"], row["dtype"], row["bytes"]]
            for row in whole["rows"] + whole["beside"]]  # fmt: skip
    return ["tensor", "role", "shape", "numbers", "type", "bytes"], rows


def plan(facts: Facts) -> tuple[list[str], Rows]:
    rows = [[what, f"{planned:.6g}", f"{actual:.6g}", f"{100 * (actual / planned - 1):+.1f} %" if planned else ""]
            for what, planned, actual in facts.plan]  # fmt: skip
    return ["what", "planned", "actual", "error"], rows


def spread(row: Any) -> str:
    return "" if row is None else f"{points(row['mean'])} ± {points(row['std'])}"


def points(share: float) -> str:
    """In percent."""
    return f"{100 * share:.1f}"


def as_csv(head: Sequence[str], rows: Rows) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([head, *rows])
    return out.getvalue()


LATEX = str.maketrans({sign: f"\\{sign}" for sign in "&%$#_{}"} | {"±": r"$\pm$", "\\": r"\textbackslash{}",
                       "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})  # fmt: skip


def as_latex(head: Sequence[str], rows: Rows) -> str:
    lines = (" & ".join(str(cell).translate(LATEX) for cell in row) + r" \\" for row in (head, *rows))
    top, *body = lines
    begin = rf"\begin{{tabular}}{{{'l' * len(head)}}}"
    return "\n".join([begin, r"\hline", top, r"\hline", *body, r"\hline", r"\end{tabular}", ""])
