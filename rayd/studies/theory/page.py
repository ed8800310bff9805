"""The verdict of the sweeps as text and as a page: where the claim holds here, where not, and what was ours to choose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import Any

from rayd.report.draw import BLUE, GREY, ORANGE, Figure
from rayd.report.shell import Html, article, grid, tag

CHOSEN = (
    "the teacher (second Hermite polynomials of the r projections), the student's activation, the one large step whose "
    "scale is dropped, the ridge regression of the second layer and its L labels on probes (which makes L additive by "
    "construction), Gaussian inputs with examples in proportion to d^2 / r, and what counts as reproduced"
)


EXPONENTS = {
    "floats_in_d": "floats of the pairs grow as d to the",
    "pairs_in_d": "pairs grow as d to the",
    "floats_in_r": "floats of the pairs grow as r to the",
    "pairs_in_width": "pairs grow as L to the",
}


def text(verdict: Mapping[str, Any]) -> str:
    lines = [f"claim: a memory of order {verdict['claim']} is enough (an upper bound)"]
    for key, words in EXPONENTS.items():
        fit = verdict[key]
        if fit:
            lines.append(f"{words} {fit['slope']:.2f} (95 % {fit['low']:.2f} to {fit['high']:.2f}, n={fit['n']})")
    least = min((energy for energy in verdict["energy"].values() if energy is not None), default=math.nan)
    lines.append(f"least energy of the pairs in the teacher's subspace, over all tasks: {least:.3f}")
    missed = ", ".join(verdict["not_reached"]) or "none"
    return "\n".join([*lines, f"tasks that no number of pairs reproduced: {missed}", f"ours to choose: {CHOSEN}"])


def html(verdict: Mapping[str, Any]) -> str:
    points = verdict["points"]
    d, r, width = _base(points)
    figures = [
        growth([p for p in points if (p["r"], p["width"]) == (r, width)], "d", "Floats of the pairs against d"),
        growth([p for p in points if (p["d"], p["width"]) == (d, width)], "r", "Floats against r"),
        energies(points),
        errors([p for p in points if (p["d"], p["r"], p["width"]) == (d, r, width)]),
    ]
    notes = (tag("p", line, class_="note") for line in text(verdict).splitlines())
    return article("What distilled pairs encode", "", [grid(figures), *notes])


def _base(points: Sequence[Mapping[str, Any]]) -> tuple[int, int, int]:
    """The task that most sweeps share."""
    seen = [(p["d"], p["r"], p["width"]) for p in points]

    def shared(task: tuple[int, int, int]) -> int:
        return sum(sum(a == b for a, b in zip(task, other, strict=True)) == 2 for other in seen)

    return max(dict.fromkeys(seen), key=shared)


def growth(points: Sequence[Mapping[str, Any]], name: str, title: str) -> Html:
    """Each seed a dot; the claimed growth as a line through the first."""
    figure = Figure()
    floats = sorted((p[name], p["pairs"] * (p["d"] + 1)) for p in points if p["pairs"])
    with figure as axes:
        axes.plot([x for x, _ in floats], [y for _, y in floats], "o", color=BLUE, ms=4, alpha=0.7, label="measured")
        if floats:
            xs = sorted({x for x, _ in floats})
            x0 = xs[0]
            y0 = geometric_mean([y for x, y in floats if x == x0])
            power = 1 if name == "d" else 2
            axes.plot(xs, [y0 * (x / x0) ** power for x in xs], color=GREY, ls=(0, (4, 3)), label=f"as {name}^{power}")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.legend()
        axes.set_title(title)
        axes.set_xlabel(name)
    return figure.svg


def energies(points: Sequence[Mapping[str, Any]]) -> Html:
    """Share of energy in the subspace by task, beside chance."""
    figure = Figure((4.3, 3.2))
    tasks = sorted({(p["d"], p["r"], p["width"]) for p in points})
    with figure as axes:
        for i, (d, r, width) in enumerate(tasks):
            shares = [p["energy"] for p in points if (p["d"], p["r"], p["width"]) == (d, r, width)]
            axes.plot(shares, [i] * len(shares), "o", color=BLUE, ms=4, alpha=0.7)
            axes.plot([r / d], [i], "|", color=ORANGE, ms=9)
        axes.set_yticks(range(len(tasks)), [f"d={d} r={r} L={width}" for d, r, width in tasks])
        axes.set_xlim(0, 1.02)
        axes.set_title("Energy in the subspace (bar: chance)")
    return figure.svg


def errors(points: Sequence[Mapping[str, Any]]) -> Html:
    """Test error as memory grows, beside training on everything."""
    figure = Figure()
    with figure as axes:
        for p in points:
            axes.plot([m for m, _ in p["tried"]], [e for _, e in p["tried"]], marker="o", ms=3.5, color=BLUE, alpha=0.7)
            axes.axhline(p["error_full"], color=ORANGE, lw=0.9, ls=(0, (4, 3)))
        axes.set_yscale("log")
        axes.set_title("Test error by pairs (dashed: all data)")
        axes.set_xlabel("pairs")
    return figure.svg
