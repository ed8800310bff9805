"""The comparison as text and as a page: accuracy after each task, one line a memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayd.report.draw import BLUE, GREEN, GREY, ORANGE, RED, VIOLET, Figure, percent_axis
from rayd.report.shell import Html, article, tag
from rayd.report.tables import points

COLOURS = (GREY, ORANGE, BLUE, VIOLET, GREEN, RED)
HEAD = f"{'memory':<16}{'images':>8}{'bytes':>10}{'after the last task':>22}{'mean over tasks':>20}{'forgetting':>18}"


def text(comparison: Mapping[str, Any]) -> str:
    title = f"{comparison['tasks']} tasks, {comparison['bytes_per_class']} bytes a class; mean +- std over orders"
    lines = [title, HEAD]
    for name, row in comparison["rows"].items():
        columns = ((row["average"][-1], 22), (row["mean_over_tasks"], 20), (row["forgetting"], 18))
        cells = "".join(f"{_cell(spread):>{width}}" for spread, width in columns)
        lines.append(f"{name:<16}{row['images']:>8}{row['bytes']:>10}{cells}")
    return "\n".join([*lines, comparison["verdict"]])


def _cell(spread: Mapping[str, Any]) -> str:
    return f"{points(spread['mean'])} +- {points(spread['std'])} (n={spread['n']})"


def curves(comparison: Mapping[str, Any]) -> Html:
    figure = Figure((6.2, 3.6))
    with figure as axes:
        for (name, row), colour in zip(comparison["rows"].items(), COLOURS * 9, strict=False):
            xs = range(1, len(row["average"]) + 1)
            means, stds = ([spread[key] for spread in row["average"]] for key in ("mean", "std"))
            axes.errorbar(xs, means, yerr=stds, color=colour, marker="o", ms=4, lw=1.5, elinewidth=1, label=name)
        percent_axis(axes.yaxis)
        axes.set_xticks(range(1, comparison["tasks"] + 1))
        axes.set_title(f"Accuracy on all classes seen, {comparison['bytes_per_class']} bytes a class")
        axes.set_xlabel("tasks")
        axes.legend()
    return figure.svg


def html(comparison: Mapping[str, Any]) -> str:
    return article(
        "Memories compared", "", [tag("div", curves(comparison), class_="wide"), tag("pre", text(comparison))]
    )
