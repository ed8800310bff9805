"""The figures, as SVG text that fits into a page. The one door for matplotlib.

Sized for a phone's width, so that they are never shrunk below legible.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from rayd.numbers import size_text
from rayd.report.shell import Html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK, SOFT, RULE = "#22262b", "#6a727c", "#dfe2e6"
BLUE, ORANGE, GREEN, GREY, RED, VIOLET = "#2b5fd9", "#dd7a32", "#2a9169", "#9aa3ad", "#c8443c", "#8460c4"
ROLES = {"pixels": BLUE, "factors": BLUE, "decoder": VIOLET, "labels": ORANGE, "step": RED}
SIZE, WIDE, NARROW = 3.1, 6.6, 3.6
"""Inches: a figure of the grid; one across the column, and the same on a phone."""
STYLE = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8.5, "svg.fonttype": "path",
    "svg.hashsalt": "rayd", "axes.edgecolor": RULE, "axes.labelcolor": SOFT, "axes.titlesize": 9, "axes.titlecolor": INK,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": RULE, "grid.linewidth": 0.6, "xtick.color": SOFT, "ytick.color": SOFT, "text.color": INK,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0, "lines.linewidth": 1.5,
    "axes.axisbelow": True, "text.parse_math": False, "legend.frameon": False, "legend.fontsize": 7.8, "axes.titlepad": 8,
}  # fmt: skip


class Figure:
    """`with Figure() as axes: ...`, then `.svg`."""

    def __init__(self, size: tuple[float, float] = (SIZE, 2.15)) -> None:
        self.size, self.svg = size, Html()

    def __enter__(self) -> Axes:
        import matplotlib

        self._style = matplotlib.rc_context(STYLE)  # type: ignore[arg-type]
        self._style.__enter__()
        from matplotlib.figure import Figure as Canvas

        self._figure = Canvas(figsize=self.size, layout="constrained")
        axes: Axes = self._figure.add_subplot()
        return axes

    def legend(self, columns: int) -> None:
        """Below the axes."""
        self._figure.legend(loc="outside lower left", ncols=columns)

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            out = io.StringIO()
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            self._figure.savefig(out, format="svg", transparent=True, metadata=nothing)
            self.svg = _inline(out.getvalue())
        self._style.__exit__(None, None, None)


def _inline(text: str) -> Html:
    """Without what only a file of its own needs: header, name spaces, fixed size."""
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return Html(re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[\d.]+pt"', r"\1", text, count=2))


def line(xs: Sequence[float], ys: Sequence[float], title: str, xlabel: str, log: bool = False, dots: bool = False,
         colour: str = BLUE, percent: bool = False) -> Html:  # fmt: skip
    """One curve; long ones get a running mean over the raw trace."""
    figure = Figure()
    with figure as axes:
        many = len(xs) > 60 and not dots
        axes.plot(xs, ys, color=colour, alpha=0.28 if many else 1, lw=0.8 if many else 1.6, marker="o" if dots else "",
                  ms=3.5)  # fmt: skip
        if many:
            axes.plot(xs, smooth(ys), color=colour)
        if log and min(ys) > 0 and max(ys) / min(ys) > 20:
            log_axis(axes)
        _finish(axes, title, xlabel, percent)
    return figure.svg


def smooth(ys: Sequence[float]) -> list[float]:
    decay, mean, out = 1 - 2 / max(10, len(ys) // 25), ys[0], []
    for y in ys:
        mean = decay * mean + (1 - decay) * y
        out.append(mean)
    return out


def experts(rows: Sequence[Mapping[str, Any]], window: tuple[int, int] | None, width: float = WIDE) -> Html:
    """Accuracy of every expert by epoch; what a match may start from and reach is shaded."""
    figure = Figure((width, 2 + width / 5))
    with figure as axes:
        if window:
            axes.axvspan(*window, color=BLUE, alpha=0.09, lw=0)
            axes.text(sum(window) / 2, 0.03, "matched", color=BLUE, ha="center", transform=axes.get_xaxis_transform())
        for row in rows:
            axes.plot(row["epochs"], row["val_accuracy"], color=INK, alpha=max(0.12, min(0.8, 4 / len(rows))), lw=1)
        shared = min(len(row["val_accuracy"]) for row in rows)
        means = [sum(row["val_accuracy"][i] for row in rows) / len(rows) for i in range(shared)]
        axes.plot(rows[0]["epochs"][:shared], means, color=ORANGE, lw=2, label=f"mean of {len(rows)}")
        axes.legend(loc="upper left")
        _finish(axes, "Validation accuracy of the experts", "epoch", True)
    return figure.svg


LOOKS = {"own": (BLUE, "o", 7.0), "control": (ORANGE, "s", 5.0), "start": (VIOLET, "D", 4.5), "full": (GREEN, "^", 6.0)}
CONTROL_MARKERS = "svPX<>dph*"


def against_bytes(points: Sequence[Mapping[str, Any]], several: bool = False, width: float = WIDE) -> Html:
    """`points`: label, bytes, mean, ci95, group (own | control | start | full). Every point has its name beside it; of
    `several` sets the controls share a marker and a name by kind, and are joined."""
    figure = Figure((width, 2.7 + width / 6 + (0.9 if several else 0.0)))
    with figure as axes:
        axes.set_xscale("log")
        sizes = [point["bytes"] for point in points]
        low, high = math.log10(min(sizes)), math.log10(max(sizes))
        room = (high - low + 0.3) * 1.5 / width
        axes.set_xlim(10 ** (low - room / 3), 10 ** (high + room * (1 + 0.6 / width)))
        of_controls: dict[str, list[Mapping[str, Any]]] = {}
        for point in sorted(points, key=lambda point: float(point["bytes"])):
            if several and point["group"] == "control":
                of_controls.setdefault(point["label"], []).append(point)
                continue
            colour, marker, size = LOOKS[point["group"]]
            axes.errorbar(point["bytes"], point["mean"], yerr=point["ci95"], color=colour, marker=marker, ms=size,
                          elinewidth=1.2, capsize=0, lw=0)  # fmt: skip
        for (label, line), marker in zip(sorted(of_controls.items()), cycle(CONTROL_MARKERS), strict=False):
            xs, ys, bars = ([point[key] for point in line] for key in ("bytes", "mean", "ci95"))
            axes.errorbar(xs, ys, yerr=bars, color=ORANGE, marker=marker, ms=5, elinewidth=0.8, lw=0.7, alpha=0.8,
                          label=label)  # fmt: skip
        full = next((point for point in points if point["group"] == "full"), None)
        if full:
            axes.axhline(full["mean"], color=GREEN, lw=0.9, ls=(0, (4, 3)))
        axes.margins(y=0.12)
        axes.set_ylim(max(0.0, axes.get_ylim()[0]), min(1.0, axes.get_ylim()[1]))
        _finish(axes, "Test accuracy against bytes", "bytes", True)
        named = [point for point in points if not (several and point["group"] == "control")]
        _label(axes, named, {name: look[0] for name, look in LOOKS.items()}, 1.45 / width)
        bytes_axis(axes.xaxis, high - low, width)
        if of_controls:
            figure.legend(columns=max(1, int(width / 2.2)))
    return figure.svg


def bytes_axis(axis: Axis, powers: float, width: float) -> None:
    """Sizes on a log axis that spans so many powers of ten in a figure so wide."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if powers < width / 4.4 else (1.0,)))
    axis.set_major_formatter(lambda value, _: size_text(value).replace(".00 ", " "))
    axis.set_minor_formatter(NullFormatter())


def _label(axes: Axes, points: Sequence[Mapping[str, Any]], colours: Mapping[str, str], share: float) -> None:
    """Names in a column right of each crowd of points, in the order of their accuracies, tied to them by thin lines.

    `share`: of the axis that a name takes.
    """
    (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
    step, wide = (high - low) * 0.064, right / left
    crowds: list[list[Mapping[str, Any]]] = []
    for point in sorted(points, key=lambda point: float(point["bytes"])):
        if crowds and point["bytes"] < max(neighbour["bytes"] for neighbour in crowds[-1]) * wide**share:
            crowds[-1].append(point)
        else:
            crowds.append([point])
    for crowd in crowds:
        crowd.sort(key=lambda point: float(point["mean"]))
        places = apart([float(point["mean"]) for point in crowd], step, low + step / 2, high - step / 2)
        beside = max(point["bytes"] for point in crowd) * wide**0.03
        for point, y in zip(crowd, places, strict=True):
            colour = colours[point["group"]]
            axes.plot([point["bytes"], beside], [point["mean"], y], color=colour, lw=0.5, alpha=0.5)
            axes.text(beside * wide**0.006, y, point["label"], va="center", fontsize=7.6, color=colour,
                      bbox={"facecolor": "white", "linewidth": 0, "pad": 0.8})  # fmt: skip


def apart(places: list[float], step: float, low: float, high: float) -> list[float]:
    """Ascending places moved as little as it takes to lie `step` apart, within low to high where they all fit."""
    groups: list[list[float]] = []  # sum of wanted starts, how many
    for place in places:
        groups.append([place, 1.0])
        while len(groups) > 1 and groups[-1][0] / groups[-1][1] < groups[-2][0] / groups[-2][1] + step * groups[-2][1]:
            wanted, count = groups.pop()
            before = groups[-1]
            before[0] += wanted - step * before[1] * count
            before[1] += count
    out: list[float] = []
    for wanted, count in groups:
        out += [wanted / count + step * i for i in range(int(count))]
    shift = max(0.0, low - out[0]) - max(0.0, out[-1] - high)
    return [place + shift for place in out]


def bars(rows: Sequence[tuple[str, float, str, str]], title: str, width: float = WIDE) -> Html:
    """(name, value, text, colour), one bar each, the value written behind it."""
    figure = Figure((width, 0.55 + 0.3 * len(rows)))
    with figure as axes:
        top = max(value for _, value, _, _ in rows) or 1.0
        for i, (_, value, text, colour) in enumerate(rows):
            axes.barh(i, value, color=colour, height=0.6)
            axes.text(value + top * 0.015, i, text, va="center", color=SOFT, fontsize=8)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_xlim(0, top * 1.3)
        axes.invert_yaxis()
        axes.xaxis.set_visible(False)
        axes.grid(False)
        axes.spines[["bottom", "left"]].set_visible(False)
        axes.set_title(title)
        axes.tick_params(axis="y", labelcolor=INK)
    return figure.svg


def spectra(lines: Mapping[str, Sequence[float]], title: str) -> Html:
    """Singular values, largest first, on a log scale."""
    figure = Figure()
    with figure as axes:
        for (name, values), colour in zip(lines.items(), (BLUE, ORANGE, GREEN, VIOLET), strict=False):
            shown = [max(value, 1e-4 * max(values)) for value in values]
            axes.plot(range(1, len(shown) + 1), shown, color=colour, marker="o", ms=2.5, label=name)
        log_axis(axes)
        if len(lines) > 1:
            axes.legend()
        _finish(axes, title, "number", False)
    return figure.svg


def _finish(axes: Axes, title: str, xlabel: str, percent: bool) -> None:
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    if percent:
        percent_axis(axes.yaxis)


def log_axis(axes: Axes) -> None:
    """Numbers up a log axis, written plainly."""
    from matplotlib.ticker import NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def percent_axis(axis: Axis) -> None:
    axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
