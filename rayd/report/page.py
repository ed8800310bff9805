"""The page: sections in the order in which a doubting reader asks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rayd.artifact.load import Artifact
from rayd.artifact.png import grid as mosaic
from rayd.numbers import duration, size_text
from rayd.report import draw, storage, tables
from rayd.report.pieces import EMPTY, both, captioned, cells, picture
from rayd.report.shell import Html, grid, joined, page, table, tag

if TYPE_CHECKING:
    from rayd.report.facts import Facts

CLASSES, COLUMNS, TILES, THIN, TALL = 20, 10, 24, 6, 48
MOST = 1e6
"""Larger numbers than this are drawn as this."""
LEAST = 64
"""Numbers that a tensor must have to be drawn."""


def html(facts: Facts) -> str:
    parts: tuple[tuple[str, str, str, Callable[[Facts], Html], str], ...] = (
        ("images", "What it looks like", "", images, ""),
        ("scores", "Accuracy against bytes", "Every set under the same recipe; bars are 95 % intervals of the mean.",
         storage.size, "evaluate"),
        ("cross", "Other architectures", "", cross, "evaluate recipe=cross"),
        ("factors", "What is stored", "The stored tensors, and what the images are made of.", factors, ""),
        ("distillation", "How it was distilled", "", curves, "distill"),
        ("experts", "The experts", "", experts, "experts"),
        ("ledger", "Where its bytes go", "Every stored number, by what it is for.", storage.ledger, ""),
        ("storage", "As stored, and as fp32", "", storage.rounding, ""),
        ("time", "Time and memory by stage", "", time, "pipeline"),
        ("plan", "Plan against actual", "", plan, "plan"),
        ("provenance", "Provenance", "", provenance, ""),
    )  # fmt: skip
    sections = []
    for name, title, lead, draw_section, verb in parts:
        command = tag("code", f"python -m jobs.{verb}")
        inside = draw_section(facts) or tag("p", "Nothing here yet. ", command, " fills this.", class_="empty")
        head = tag("p", lead, class_="lead") if lead else EMPTY
        sections.append(tag("section", tag("h2", title), head, inside, id=name))
    links = tag("nav", *(tag("a", name, href=f"#{name}") for name, *_ in parts))
    footer = tag("footer", "rayd: made from the run's own files, with nothing loaded from elsewhere.")
    return page(_title(facts), hero(facts), links, tag("main", *sections), footer)


def hero(facts: Facts) -> Html:
    artifact, card = facts.artifact, facts.artifact.card
    ledger = card["ledger"]
    numbers = {
        "images": f"{len(artifact):,}",
        "numbers stored": f"{ledger['floats']:,}",
        "on disk": size_text(ledger["bytes"]),
        "images per class, in floats": f"{ledger['ipc']:.2f}",
        "test set read": f"{card['reads']}x",
    }
    scored = _row(facts, "distilled") is not None
    claim = _accuracy(facts) if scored else [_unscored()]
    claim += [tag("p", f"published: {figure}", class_="under") for figure in facts.published]
    claim += _verdict(facts.table.get("verdict", {})) if scored else []
    return tag(
        "header",
        tag("p", card["sentence"] or card["codec"].get("name", ""), class_="kicker"),
        tag("h1", _title(facts)),
        tag("div", *claim, class_="claim"),
        cells(numbers),
    )


def _unscored() -> Html:
    command = tag("p", tag("code", "python -m jobs.evaluate"), " does.", class_="empty")
    return joined([tag("p", "not scored yet", class_="big none"), command])


def _accuracy(facts: Facts) -> list[Html]:
    row, full = _row(facts, "distilled"), _row(facts, "full")
    interval = f" % ± {tables.points(row['ci95'])}" if row["n"] > 1 else " % "
    against = f"; the full set gives {tables.points(full['mean'])} %" if full else ""
    networks = f"test accuracy of {row['n']} fresh {row['net']} networks, recipe "
    return [
        tag("p", tables.points(row["mean"]), tag("span", interval), class_="big"),
        tag("p", networks, tag("code", row["recipe"]), against, class_="under"),
    ]


def _verdict(verdict: Any) -> list[Html]:
    word = verdict.get("overall", "not asked")
    pill = tag("p", "Beats the coreset: ", tag("b", word), class_=f"pill {word.partition(' ')[0]}")
    if not verdict.get("why"):
        return [pill]
    summary = tag("summary", f"at equal floats {verdict['floats']}, at equal bytes {verdict['bytes']}")
    return [pill, tag("details", summary, tag("ul", *(tag("li", reason) for reason in verdict["why"])))]


def images(facts: Facts) -> Html:
    artifact = facts.artifact
    strips, most = [], 0
    for c, name in enumerate(artifact.classes[:CLASSES]):
        shown = torch.where(artifact.labels == c)[0][:COLUMNS]
        strip = mosaic([artifact.images(index=shown).clamp(0, 1)])
        strips.append(tag("div", tag("span", name), picture(strip, name), class_="strip", style=f"--n:{len(shown)}"))
        most = max(most, len(shown))
    more = len(artifact.classes) - CLASSES
    note = tag("p", f"and {more} more classes", class_="note") if more > 0 else EMPTY
    return joined([tag("div", *strips, class_="strips few" if most <= 2 else "strips"), note])


def factors(facts: Facts) -> Html:
    artifact = facts.artifact
    figures = []
    for name, stored in artifact.stored.items():
        if stored.role in ("factors", "decoder") and stored.tensor.ndim >= 2 and stored.tensor.numel() >= LEAST:
            shape = " x ".join(map(str, stored.tensor.shape))
            figures.append(captioned(picture(tiles(stored.tensor), name), tag("b", name), f" {shape}, {stored.role}"))
    figures += _matrix(artifact)
    values = singular(artifact.images("network", torch.arange(min(len(artifact), 64))))
    spectrum = draw.spectra({"images": values}, "Singular values of the images")
    return grid([*figures, captioned(spectrum, "mean over images and channels, largest first")])


def _matrix(artifact: Artifact) -> list[Html]:
    """Where an image is named by several numbers: the first unit of each class against what it is combined with."""
    axes = {name: size for name, size in artifact.codec.axes.items() if size > 1}
    if len(axes) < 2:
        return []
    outer, *others = axes.values()
    inner = prod(others)
    lines = []
    with torch.no_grad():
        for row in range(min(outer, 8)):
            index = torch.arange(row * inner, row * inner + min(inner, 8))
            lines.append(artifact.transform.inverse(artifact.codec.decode(index)[0].float()))
    names = " x ".join(axes)
    return [captioned(picture(mosaic(lines), names), tag("b", names), ": rows share one, columns the other")]


def cross(facts: Facts) -> Html:
    head, rows = tables.cross(facts)
    return table(head, rows) if rows else EMPTY


CURVES = (
    ("loss", "Matching loss", draw.BLUE), ("step_size", "Learned step size", draw.ORANGE),
    ("val", "Validation accuracy", draw.GREEN), ("grad_norm", "Gradient norm", draw.VIOLET),
)  # fmt: skip


def curves(facts: Facts) -> Html:
    figures = []
    for key, title, colour in CURVES:
        points = [(line["step"], line[key]) for line in facts.steps if isinstance(line.get(key), int | float)]
        if len(points) > 1:
            xs, ys = zip(*points, strict=True)
            log, share = key in ("loss", "grad_norm"), key == "val"
            figures.append(draw.line(xs, ys, title, "step", log, dots=share, colour=colour, percent=share))
    return grid(figures) if figures else EMPTY


def experts(facts: Facts) -> Html:
    if not facts.experts or len(facts.experts[0]["val_accuracy"]) < 2:
        return EMPTY
    objective = facts.artifact.card["config"].get("method", {}).get("objective", {})
    first, last, epochs = (objective.get(name) for name in ("first", "last", "expert_epochs"))
    known = isinstance(first, int) and isinstance(last, int) and isinstance(epochs, int)
    window = (first, last - 1 + epochs) if known else None
    return both(partial(draw.experts, facts.experts, window))


def time(facts: Facts) -> Html:
    timing = {
        name: value for name, value in facts.timing.items() if isinstance(value, int | float) and 0 < value < 1e15
    }
    seconds = [
        (name.removesuffix("_s"), value, duration(value), draw.BLUE)
        for name, value in timing.items()
        if name.endswith("_s")
    ]
    memory = [
        (name.removesuffix("_peak"), value, size_text(value), draw.ORANGE)
        for name, value in timing.items() if name.endswith("_peak")
    ]  # fmt: skip
    titles = ((seconds, "Time"), (memory, "Peak memory of one process"))
    return joined(both(partial(draw.bars, bars, title)) for bars, title in titles if bars)


def plan(facts: Facts) -> Html:
    head, rows = tables.plan(facts)
    return table(head, rows) if rows else EMPTY


def provenance(facts: Facts) -> Html:
    card = facts.artifact.card
    known = {"run": card["fingerprint"], "data": card["data"].get("content", ""), "card": card["sha256"],
             "transform": facts.artifact.transform.kind, "seeds": card["seeds"], "torch": card["versions"].get("torch"),
             "protocol": facts.table.get("protocol", ""), "chosen by": card["claim"].get("select", "")}  # fmt: skip
    lines = (part for name, value in known.items() if value for part in (tag("dt", name), tag("dd", value)))
    command = tag("code", "python -m jobs.evaluate verify=ARTIFACT")
    return joined([tag("dl", *lines), tag("p", "Check it: ", command, class_="note")])


# ---- pieces ------------------------------------------------------------------------------------------------------


def tiles(tensor: Tensor) -> Tensor:
    """The last two axes as pictures (thin ones as one table), each on its own scale: grey is zero, light is above."""
    if tensor.ndim == 4 and tensor.shape[1] == 3 and min(tensor.shape[2:]) >= THIN:
        return mosaic(_scaled(tensor.float()[:TILES], (1, 2, 3)).split(6))
    flat = tensor.float().reshape(-1, *tensor.shape[-2:])
    if min(flat.shape[1:]) < THIN:
        columns = tensor.float().flatten(1)
        flat = (columns if columns.shape[0] <= columns.shape[1] else columns.T)[None]
    scaled = _scaled(flat[:TILES, :TALL, : 2 * TALL], (1, 2))
    across = 6 if len(scaled) > 6 else max(1, len(scaled))
    return mosaic([row[:, None] for row in scaled.split(across)])


def _scaled(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    return 0.5 + 0.5 * tensor / tensor.abs().amax(dims, keepdim=True).clamp(min=1e-12)


def singular(images_NCHW: Tensor) -> list[float]:
    finite = images_NCHW.float().nan_to_num(0, 0, 0).clamp(-MOST, MOST)
    values: list[float] = torch.linalg.svdvals(finite.flatten(0, 1)).mean(0).tolist()
    return values


def _row(facts: Facts, name: str) -> Any:
    return next((row for row in facts.table.get("rows", []) if row["set"] == name), None)


def _title(facts: Facts) -> str:
    return f"{facts.artifact.card['data'].get('name', 'a dataset')}, distilled"
