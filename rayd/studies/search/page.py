"""A search as a page: the front, accuracy over dials, parallel coordinates, how much each dial mattered, every trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rayd.report.draw import BLUE, GREEN, GREY, ORANGE, Figure
from rayd.report.style import CSS
from rayd.studies.search.outcome import text
from rayd.studies.search.trials import FINISHED, TrialRow

DARK, BRIGHT = (0.16, 0.14, 0.42), (0.98, 0.80, 0.25)


def shade(share: float) -> tuple[float, float, float]:
    """From dark to bright."""
    red, green, blue = (a + share * (b - a) for a, b in zip(DARK, BRIGHT, strict=True))
    return red, green, blue


def html(told: Mapping[str, Any], records: Sequence[TrialRow]) -> str:
    scored = [one for one in records if one.accuracy is not None and one.size is not None]
    figures = [bytes_front(told, scored), shares(told), curves(scored), coordinates(scored), *heats(scored)]
    body = "".join(f"<figure>{one}</figure>" for one in figures if one)
    lead = (
        f"{told['trials']} trials ({told['searcher']}, {told['scheduler']}), {told['steps']} steps at most; accuracy is "
        "on the validation split, and of the best of many trials too high. The test set was not seen by any trial."
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Search</title><style>{CSS}</style></head><body><header><h1>Search</h1><p class='lead'>{escape(lead)}</p>"
        f'</header><main><section><div class="grid">{body}</div></section>'
        f"<section><pre>{escape(text(told))}</pre></section><section>{table(records)}</section></main></body></html>\n"
    )


def bytes_front(told: Mapping[str, Any], records: Sequence[TrialRow]) -> str:
    """Finished trials and the front through them; those that were stopped, pale, at their last validation."""
    figure = Figure()
    with figure as axes:
        for one in records:
            assert one.size is not None
            axes.plot([one.size.bytes], [one.accuracy or 0.0], "o", ms=4, color=BLUE if one.end == FINISHED else GREY,
                      alpha=0.85 if one.end == FINISHED else 0.45)  # fmt: skip
        front = told["front"]
        axes.plot([row["bytes"] for row in front], [row["accuracy"] for row in front], color=ORANGE, marker="o", ms=5)
        axes.set_title("Accuracy against bytes (grey: stopped)")
        axes.set_xlabel("bytes")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.locator_params(axis="x", nbins=4)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    return figure.svg


def shares(told: Mapping[str, Any]) -> str:
    figure = Figure()
    found = list(reversed(told["importance"]))
    with figure as axes:
        axes.barh([short(one["dial"]) for one in found], [one["share"] for one in found], color=GREEN, height=0.55)
        axes.set_xlim(0, 1)
        axes.set_title("Variance explained by each dial alone")
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    return figure.svg


def curves(records: Sequence[TrialRow]) -> str:
    figure = Figure()
    with figure as axes:
        for one in records:
            done = one.end == FINISHED
            axes.plot([s for s, _ in one.curve], [v for _, v in one.curve], color=BLUE if done else GREY, lw=1,
                      alpha=0.8 if done else 0.5, marker="o", ms=2.5)  # fmt: skip
        axes.set_title("Every trial, until it was stopped")
        axes.set_xlabel("step")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    return figure.svg


def places(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Each value's place from 0 to 1 and some ticks: numbers by size (by factor where they span much), others in turn."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        low, high = min(values), max(values)
        log = low > 0 and high / low > 20
        ease = math.log if log else float
        span = (ease(high) - ease(low)) or 1.0
        spots = [(ease(v) - ease(low)) / span for v in values]
        distinct = sorted(set(values))
        shown = distinct if len(distinct) <= 6 else [low, high]
        return spots, [((ease(v) - ease(low)) / span, f"{v:.3g}") for v in shown]
    names = sorted({str(v) for v in values})
    return [names.index(str(v)) / max(len(names) - 1, 1) for v in values], [
        (i / max(len(names) - 1, 1), name[:14]) for i, name in enumerate(names)
    ]


def tiles(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """As `places`, but a few distinct numbers side by side, each with as much room as its neighbour."""
    distinct = sorted(set(values), key=lambda v: (str(type(v)), v))
    if len(distinct) > 8:
        return places(values)
    room = max(len(distinct), 4)
    spots = {value: (i + 0.5) / room for i, value in enumerate(distinct)}
    named = {value: f"{value:.3g}" if isinstance(value, float) else str(value)[:14] for value in distinct}
    return [spots[v] for v in values], [(spots[v], named[v]) for v in distinct]


def coordinates(records: Sequence[TrialRow]) -> str:
    """Parallel coordinates: one line a trial over its dials, coloured by accuracy. Dials of other families are left out."""
    paths = [
        p for p in dict.fromkeys(p for one in records for p in one.point) if all(p in one.point for one in records)
    ]
    if len(paths) < 2 or not records:
        return ""
    low, high = (f(one.accuracy or 0.0 for one in records) for f in (min, max))
    figure = Figure()
    with figure as axes:
        columns = [places([one.point[path] for one in records]) for path in paths]
        for i, one in enumerate(records):
            share = ((one.accuracy or 0.0) - low) / ((high - low) or 1.0)
            axes.plot(
                range(len(paths)), [spots[i] for spots, _ in columns], color=shade(share), lw=0.8 + share, alpha=0.85
            )
        for x, (_, ticks) in enumerate(columns):
            for y, label in ticks:
                axes.text(x + 0.03, y, label, fontsize=7.5, va="center")
        axes.set_xticks(range(len(paths)), [short(path) for path in paths])
        axes.set_yticks([])
        axes.set_title(f"Dials: {100 * low:.3g} % dark, {100 * high:.3g} % bright")
    return figure.svg


def heats(records: Sequence[TrialRow]) -> list[str]:
    """The best accuracy over (rank, sharing), or the first two dials, for each family."""
    made = []
    for family in dict.fromkeys(one.point.get("family", "") for one in records):
        own = [one for one in records if one.point.get("family", "") == family]
        every = [p for p in own[0].point if p != "family"]
        paths = sorted(every, key=lambda p: short(p) not in ("rank", "sharing"))
        if len(paths) >= 2:
            made.append(heat(own, paths[0], paths[1], family))
    return made


def heat(records: Sequence[TrialRow], across: str, up: str, family: str) -> str:
    low, high = (f(one.accuracy or 0.0 for one in records) for f in (min, max))
    figure = Figure()
    with figure as axes:
        (xs, x_ticks), (ys, y_ticks) = (tiles([r.point[path] for r in records]) for path in (across, up))
        wide, tall = (1 / max(len(ticks), 4) for ticks in (x_ticks, y_ticks))
        ordered = sorted(zip(xs, ys, records, strict=True), key=lambda item: item[2].accuracy or 0.0)
        for x, y, one in ordered:
            share = ((one.accuracy or 0.0) - low) / ((high - low) or 1.0)
            axes.bar([x], [tall], wide, bottom=y - tall / 2, color=shade(share), edgecolor="white", lw=1)
            ink = "black" if share > 0.6 else "white"
            said = f"{100 * (one.accuracy or 0.0):.0f}" + ("" if one.end == FINISHED else "·")
            axes.text(x, y, said, fontsize=7, ha="center", va="center", color=ink)
        axes.set_xticks([place for place, _ in x_ticks], [label for _, label in x_ticks])
        axes.set_yticks([place for place, _ in y_ticks], [label for _, label in y_ticks])
        axes.grid(False)
        axes.set_xlabel(short(across))
        axes.set_ylabel(short(up))
        axes.set_title(f"{family + ': a' if family else 'A'}ccuracy over dials (·: stopped)")
    return figure.svg


def table(records: Sequence[TrialRow]) -> str:
    """Every trial, whatever came of it."""
    rows = [one.row() for one in records]
    paths = dict.fromkeys(path for one in records for path in one.point)
    head = [
        "trial",
        *paths,
        "images",
        "floats",
        "bytes",
        "fill",
        "accuracy",
        "std",
        "steps",
        "seconds",
        "end",
        "reason",
    ]
    cells = "".join(
        "<tr>" + "".join(f"<td>{escape(cell(row.get(name)))}</td>" for name in head) + "</tr>" for row in rows
    )
    names = "".join(f"<th>{escape(short(name))}</th>" for name in head)
    return f'<div class="table"><table><thead><tr>{names}</tr></thead><tbody>{cells}</tbody></table></div>'


def cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short(path: str) -> str:
    return path.rsplit(".", 1)[-1]
