"""The comparison as text and as a page: accuracy after each task, one line a memory."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from rayd.report.draw import BLUE, GREEN, GREY, ORANGE, RED, VIOLET, Figure
from rayd.report.style import CSS

COLOURS = (GREY, ORANGE, BLUE, VIOLET, GREEN, RED)


def text(told: Mapping[str, Any]) -> str:
    head = (
        f"{'memory':<16}{'images':>8}{'bytes':>10}{'after the last task':>22}{'mean over tasks':>20}{'forgetting':>18}"
    )
    lines = [f"{told['tasks']} tasks, {told['bytes_per_class']} bytes a class; mean +- std over orders", head]
    for name, row in told["rows"].items():
        last, mean, lost = row["average"][-1], row["mean_over_tasks"], row["forgetting"]
        cells = "".join(f"{_cell(one):>{width}}" for one, width in ((last, 22), (mean, 20), (lost, 18)))
        lines.append(f"{name:<16}{row['images']:>8}{row['bytes']:>10}{cells}")
    return "\n".join([*lines, told["verdict"]])


def _cell(one: Mapping[str, float]) -> str:
    return f"{100 * one['mean']:.1f} +- {100 * one['std']:.1f} (n={one['n']})"


def figure(told: Mapping[str, Any]) -> str:
    made = Figure((6.2, 3.6))
    with made as axes:
        for (name, row), colour in zip(told["rows"].items(), COLOURS * 9, strict=False):
            xs = range(1, len(row["average"]) + 1)
            means, stds = ([one[key] for one in row["average"]] for key in ("mean", "std"))
            axes.errorbar(xs, means, yerr=stds, color=colour, marker="o", ms=4, lw=1.5, elinewidth=1, label=name)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes.set_xticks(range(1, told["tasks"] + 1))
        axes.set_title(f"Accuracy on all classes seen, {told['bytes_per_class']} bytes a class")
        axes.set_xlabel("tasks")
        axes.legend()
    return made.svg


def html(told: Mapping[str, Any]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Memories compared</title><style>{CSS}</style></head><body><header><h1>Memories compared</h1></header><main>"
        f'<section><div class="wide">{figure(told)}</div><pre>{escape(text(told))}</pre></section></main></body></html>\n'
    )
