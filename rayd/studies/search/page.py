"""A search as a page: the front, accuracy over dials, parallel coordinates, how much each dial mattered, every trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rayd.report.draw import BLUE, GREEN, GREY, ORANGE, SIZE, Figure, bytes_axis, percent_axis
from rayd.report.shell import Html, article, grid, table, tag
from rayd.studies.search.outcome import text
from rayd.studies.search.space import FAMILY, short
from rayd.studies.search.trials import TrialRow

DARK, BRIGHT = (0.16, 0.14, 0.42), (0.98, 0.80, 0.25)
Scored = Sequence[tuple[float, TrialRow]]
"""Accuracy and record of the trials that have one."""
Places = tuple[list[float], list[tuple[float, str]]]
"""Each value's place from 0 to 1; ticks."""


def html(outcome: Mapping[str, Any], records: Sequence[TrialRow]) -> str:
    scored = [(record.accuracy, record) for record in records if record.accuracy is not None and record.size]
    figures = [bytes_front(outcome, scored), shares(outcome), curves(scored), coordinates(scored), *heats(scored)]
    lead = (
        f"{outcome['trials']} trials ({outcome['searcher']}, {outcome['scheduler']}), {outcome['steps']} steps at most; "
        "accuracy is on the validation split, and of the best of many trials too high. No trial read the test set."
    )
    return article("Search", lead, [grid(figures)], [tag("pre", text(outcome))], [trials(records)])


def bytes_front(outcome: Mapping[str, Any], scored: Scored) -> Html:
    """Finished trials and the front through them; those that were stopped, pale, at their last validation."""
    figure = Figure()
    with figure as axes:
        for accuracy, record in scored:
            colour, alpha = (BLUE, 0.85) if record.whole else (GREY, 0.45)
            axes.plot([record.size.bytes if record.size else 0], [accuracy], "o", ms=4, color=colour, alpha=alpha)
        front = outcome["front"]
        axes.plot([row["bytes"] for row in front], [row["accuracy"] for row in front], color=ORANGE, marker="o", ms=5)
        axes.set_title("Accuracy against bytes (grey: stopped)")
        axes.set_xlabel("bytes")
        sizes = [record.size.bytes for _, record in scored if record.size]
        if sizes:
            least, most = min(sizes), max(sizes)
            axes.set_xscale("log")
            axes.set_xlim(least / 1.4, most * 1.4)
            bytes_axis(axes.xaxis, math.log10(most / least), SIZE)
        percent_axis(axes.yaxis)
    return figure.svg


def shares(outcome: Mapping[str, Any]) -> Html:
    figure = Figure()
    rows = outcome["importance"][::-1]
    with figure as axes:
        axes.barh([short(row["dial"]) for row in rows], [row["share"] for row in rows], color=GREEN, height=0.55)
        axes.set_xlim(0, 1)
        axes.set_title("Variance explained by each dial alone")
        percent_axis(axes.xaxis)
    return figure.svg


def curves(scored: Scored) -> Html:
    figure = Figure()
    with figure as axes:
        for _, record in scored:
            steps, values = zip(*record.curve, strict=True) if record.curve else ((), ())
            colour, alpha = (BLUE, 0.8) if record.whole else (GREY, 0.5)
            axes.plot(steps, values, color=colour, lw=1, alpha=alpha, marker="o", ms=2.5)
        axes.set_title("Every trial, until it was stopped")
        axes.set_xlabel("step")
        percent_axis(axes.yaxis)
    return figure.svg


def shade(accuracy: float, low: float, high: float) -> tuple[float, float, float]:
    """From dark to bright."""
    share = (accuracy - low) / ((high - low) or 1.0)
    red, green, blue = (a + share * (b - a) for a, b in zip(DARK, BRIGHT, strict=True))
    return red, green, blue


def places(values: Sequence[Any]) -> Places:
    """Numbers by size, or by factor where they span much; other values in turn."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        low, high = min(values), max(values)
        ease = math.log if low > 0 and high / low > 20 else float
        span = (ease(high) - ease(low)) or 1.0
        distinct = sorted(set(values))
        shown = distinct if len(distinct) <= 6 else [low, high]
        return [(ease(v) - ease(low)) / span for v in values], [
            ((ease(v) - ease(low)) / span, f"{v:.3g}") for v in shown
        ]
    names = sorted({str(v) for v in values})
    spots = {name: i / max(len(names) - 1, 1) for i, name in enumerate(names)}
    return [spots[str(v)] for v in values], [(spot, name[:14]) for name, spot in spots.items()]


def tiles(values: Sequence[Any]) -> Places:
    """As `places`, but a few distinct numbers side by side, each with as much room as its neighbour."""
    distinct = sorted(set(values), key=lambda v: (str(type(v)), v))
    if len(distinct) > 8:
        return places(values)
    room = max(len(distinct), 4)
    spots = {value: (i + 0.5) / room for i, value in enumerate(distinct)}
    names = {value: f"{value:.3g}" if isinstance(value, float) else str(value)[:14] for value in distinct}
    return [spots[v] for v in values], [(spots[v], names[v]) for v in distinct]


def coordinates(scored: Scored) -> Html:
    """Parallel coordinates: one line a trial over its dials, coloured by accuracy. Dials of other families are left out."""
    dials = dict.fromkeys(path for _, record in scored for path in record.point)
    paths = [path for path in dials if all(path in record.point for _, record in scored)]
    if len(paths) < 2:
        return Html()
    low, high = (f(accuracy for accuracy, _ in scored) for f in (min, max))
    figure = Figure()
    with figure as axes:
        columns = [places([record.point[path] for _, record in scored]) for path in paths]
        for i, (accuracy, _) in enumerate(scored):
            width = 0.8 + (accuracy - low) / ((high - low) or 1.0)
            heights = [spots[i] for spots, _ in columns]
            axes.plot(range(len(paths)), heights, color=shade(accuracy, low, high), lw=width, alpha=0.85)
        for x, (_, ticks) in enumerate(columns):
            for y, label in ticks:
                axes.text(x + 0.03, y, label, fontsize=7.5, va="center")
        axes.set_xticks(range(len(paths)), [short(path) for path in paths])
        axes.set_yticks([])
        axes.set_title(f"Dials: {100 * low:.3g} % dark, {100 * high:.3g} % bright")
    return figure.svg


def heats(scored: Scored) -> list[Html]:
    """The best accuracy over (rank, sharing), or the first two dials, for each family."""
    families: dict[str, list[tuple[float, TrialRow]]] = {}
    for accuracy, record in scored:
        families.setdefault(record.point.get(FAMILY, ""), []).append((accuracy, record))
    figures = []
    for family, members in families.items():
        dials = [path for path in members[0][1].point if path != FAMILY]
        dials.sort(key=lambda path: short(path) not in ("rank", "sharing"))
        if len(dials) >= 2:
            figures.append(heat(members, dials[0], dials[1], family))
    return figures


def heat(scored: Scored, across: str, up: str, family: str) -> Html:
    low, high = (f(accuracy for accuracy, _ in scored) for f in (min, max))
    figure = Figure()
    with figure as axes:
        (xs, x_ticks), (ys, y_ticks) = (tiles([record.point[path] for _, record in scored]) for path in (across, up))
        width, height = (1 / max(len(ticks), 4) for ticks in (x_ticks, y_ticks))
        best_last = sorted(zip(xs, ys, scored, strict=True), key=lambda item: item[2][0])
        for x, y, (accuracy, record) in best_last:
            colour = shade(accuracy, low, high)
            axes.bar([x], [height], width, bottom=y - height / 2, color=colour, edgecolor="white", lw=1)
            ink = "black" if accuracy - low > 0.6 * (high - low) else "white"
            label = f"{100 * accuracy:.0f}{'' if record.whole else '·'}"
            axes.text(x, y, label, fontsize=7, ha="center", va="center", color=ink)
        axes.set_xticks([place for place, _ in x_ticks], [label for _, label in x_ticks])
        axes.set_yticks([place for place, _ in y_ticks], [label for _, label in y_ticks])
        axes.grid(False)
        axes.set_xlabel(short(across))
        axes.set_ylabel(short(up))
        axes.set_title(f"{family + ': a' if family else 'A'}ccuracy over dials (·: stopped)")
    return figure.svg


def trials(records: Sequence[TrialRow]) -> Html:
    """Every trial, whatever its end."""
    paths = dict.fromkeys(path for record in records for path in record.point)
    results = ("images", "floats", "bytes", "fill", "accuracy", "std", "steps", "seconds", "end", "reason")
    names = ("trial", *paths, *results)
    rows = (record.flat() for record in records)
    return table([short(name) for name in names], ([cell(row.get(name)) for name in names] for row in rows))


def cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
