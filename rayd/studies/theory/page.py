"""What the sweeps say, as text and as a page: where the claim holds here, where not, and what was ours to choose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rayd.report.draw import BLUE, GREY, ORANGE, Figure
from rayd.report.style import CSS

CHOSEN = (
    "the teacher (second Hermite polynomials of the r projections), the student's activation, the one large step whose "
    "scale is dropped, the ridge regression of the second layer and its L labels on probes (which makes L additive by "
    "construction), Gaussian inputs with examples in proportion to d^2 / r, and what counts as reproduced"
)


def text(told: Mapping[str, Any]) -> str:
    lines = [f"claim: a memory of order {told['claim']} is enough (an upper bound)"]
    names = {"floats_in_d": "floats of the pairs grow as d to the", "pairs_in_d": "pairs grow as d to the",
             "floats_in_r": "floats of the pairs grow as r to the", "pairs_in_width": "pairs grow as L to the"}  # fmt: skip
    for key, words in names.items():
        fit = told[key]
        if fit:
            lines.append(f"{words} {fit['slope']:.2f} (95 % {fit['low']:.2f} to {fit['high']:.2f}, n={fit['n']})")
    low = min((v for v in told["energy"].values() if v is not None), default=math.nan)
    lines.append(f"least energy of the pairs in the teacher's subspace, over all tasks: {low:.3f}")
    missed = ", ".join(told["not_reached"]) or "none"
    return "\n".join([*lines, f"tasks that no memory tried reproduced: {missed}", f"ours to choose: {CHOSEN}"])


def html(told: Mapping[str, Any]) -> str:
    base = _base(told["points"])
    figures = [
        growth([p for p in told["points"] if (p["r"], p["width"]) == base[1:]], "d", "Floats of the pairs against d"),
        growth([p for p in told["points"] if (p["d"], p["width"]) == (base[0], base[2])], "r", "Floats against r"),
        energies(told["points"]),
        errors([p for p in told["points"] if (p["d"], p["r"], p["width"]) == base]),
    ]
    body = "".join(f"<figure>{one}</figure>" for one in figures)
    words = "".join(f'<p class="note">{escape(one)}</p>' for one in text(told).splitlines())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>What distilled pairs encode</title><style>{CSS}</style></head><body><header><h1>What distilled pairs encode"
        f'</h1></header><main><section><div class="grid">{body}</div>{words}</section></main></body></html>\n'
    )


def _base(points: Sequence[Mapping[str, Any]]) -> tuple[int, int, int]:
    """The task that most sweeps share."""
    seen = [(p["d"], p["r"], p["width"]) for p in points]

    def shared(one: tuple[int, int, int]) -> int:
        return sum(sum(a == b for a, b in zip(one, other, strict=True)) == 2 for other in seen)

    return max(dict.fromkeys(seen), key=shared)


def growth(points: Sequence[Mapping[str, Any]], name: str, title: str) -> str:
    """Each seed a dot; the claimed growth as a line through the first."""
    figure = Figure()
    found = sorted((p[name], p["pairs"] * (p["d"] + 1)) for p in points if p["pairs"])
    with figure as axes:
        axes.plot([x for x, _ in found], [y for _, y in found], "o", color=BLUE, ms=4, alpha=0.7, label="found")
        if found:
            x0 = found[0][0]
            y0 = math.exp(sum(math.log(y) for x, y in found if x == x0) / sum(x == x0 for x, _ in found))
            power = 1 if name == "d" else 2
            xs = sorted({x for x, _ in found})
            axes.plot(xs, [y0 * (x / x0) ** power for x in xs], color=GREY, ls=(0, (4, 3)), label=f"as {name}^{power}")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.legend()
        axes.set_title(title)
        axes.set_xlabel(name)
    return figure.svg


def energies(points: Sequence[Mapping[str, Any]]) -> str:
    """Share of energy in the subspace by task, beside chance."""
    figure = Figure((4.3, 3.2))
    tasks = sorted({(p["d"], p["r"], p["width"]) for p in points})
    with figure as axes:
        for i, (d, r, width) in enumerate(tasks):
            own = [p["energy"] for p in points if (p["d"], p["r"], p["width"]) == (d, r, width)]
            axes.plot(own, [i] * len(own), "o", color=BLUE, ms=4, alpha=0.7)
            axes.plot([r / d], [i], "|", color=ORANGE, ms=9)
        axes.set_yticks(range(len(tasks)), [f"d={d} r={r} L={width}" for d, r, width in tasks])
        axes.set_xlim(0, 1.02)
        axes.set_title("Energy in the subspace (bar: chance)")
    return figure.svg


def errors(points: Sequence[Mapping[str, Any]]) -> str:
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
