"""The page: sections in the order in which a doubting reader asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rayd.artifact.load import Artifact
from rayd.artifact.png import data_uri, grid, png
from rayd.readable import size_text
from rayd.report import draw, tables
from rayd.report.style import CSS

if TYPE_CHECKING:
    from rayd.report.facts import Facts

CLASSES, COLUMNS, TILES, THIN, TALL = 20, 10, 24, 6, 48
LEAST = 64
"""Numbers that a tensor must have to be drawn."""


def html(facts: Facts) -> str:
    parts: list[tuple[str, str, str, Callable[[Facts], str], str]] = [
        ("images", "What it looks like", "", images, ""),
        ("scores", "Accuracy against bytes", "Every set under the same recipe; bars are 95 % intervals of the mean.", size,
         "evaluate"),
        ("cross", "Other architectures", "", cross, "evaluate recipe=cross"),
        ("factors", "What is stored", "The stored tensors, and what the images are made of.", factors, ""),
        ("distillation", "How it was distilled", "", curves, "distill"),
        ("experts", "The experts", "", experts, "experts"),
        ("ledger", "Ledger", "Every stored number, by what it is for.", ledger, ""),
        ("time", "Time and memory by stage", "", time, "pipeline"),
        ("plan", "Plan against actual", "", plan, "plan"),
        ("provenance", "Provenance", "", provenance, ""),
    ]  # fmt: skip
    body = [hero(facts)]
    for name, title, lead, make, verb in parts:
        inside = make(facts) or f'<p class="empty">Nothing here yet. <code>python -m jobs.{verb}</code> fills this.</p>'
        told = f'<p class="lead">{lead}</p>' if lead else ""
        body.append(f'<section id="{name}"><h2>{title}</h2>{told}{inside}</section>')
    links = "".join(f'<a href="#{name}">{name}</a>' for name, *_ in parts)
    title = escape(f"{_source(facts.artifact)}, distilled")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{CSS}</style></head><body>"
        f"{body[0]}<nav>{links}</nav><main>{''.join(body[1:])}</main>"
        "<footer>rayd: made from the run's own files, with nothing loaded from elsewhere.</footer></body></html>\n"
    )


def hero(facts: Facts) -> str:
    artifact, verdict = facts.artifact, facts.table.get("verdict", {})
    own = _row(facts, "distilled")
    full = _row(facts, "full")
    held = artifact.card["ledger"]
    if own is None:
        big = '<p class="big none">not scored yet</p><p class="empty"><code>python -m jobs.evaluate</code> does.</p>'
    else:
        wide = f"± {100 * own['ci95']:.1f}" if own["n"] > 1 else ""
        big = (f'<p class="big">{100 * own["mean"]:.1f}<span> % {wide}</span></p><p class="under">test accuracy of '
               f"{own['n']} fresh {escape(own['net'])} networks, recipe <code>{escape(own['recipe'])}</code>"
               + (f"; the full set gives {100 * full['mean']:.1f} %" if full else "") + "</p>")  # fmt: skip
    big += "".join(f'<p class="under">published: {escape(one)}</p>' for one in facts.published)
    word = verdict.get("overall", "not asked")
    pill = f'<p class="pill {word.split()[0]}">Beats the coreset: <b>{word}</b></p>' if own else ""
    why = "".join(f"<li>{escape(one)}</li>" for one in verdict.get("why", []))
    if why:
        short = f"at equal floats {verdict['floats']}, at equal bytes {verdict['bytes']}"
        why = f"<details><summary>{short}</summary><ul>{why}</ul></details>"
    facts_row = [("images", f"{len(artifact):,}"), ("numbers stored", f"{held['floats']:,}"),
                 ("on disk", draw.size_text(held["bytes"])), ("images per class, in floats", f"{held['ipc']:.2f}"),
                 ("test set read", f"{artifact.card['reads']}x")]  # fmt: skip
    cells = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in facts_row)
    sentence = escape(artifact.card["sentence"] or artifact.card["codec"].get("name", ""))
    return (f'<header><p class="kicker">{sentence}</p><h1>{escape(_source(artifact))}, distilled</h1>'
            f'<div class="claim"><div>{big}{pill}{why}</div></div><div class="facts">{cells}</div></header>')  # fmt: skip


def images(facts: Facts) -> str:
    artifact = facts.artifact
    labels, lines = artifact.labels, []
    for c, name in list(enumerate(artifact.classes))[:CLASSES]:
        shown = torch.where(labels == c)[0][:COLUMNS]
        strip, count = grid([artifact.images(index=shown).clamp(0, 1)]), len(shown)
        lines.append(f'<div class="strip" style="--n:{count}"><span>{escape(name)}</span>{picture(strip, name)}</div>')
    few = count <= 2
    more = len(artifact.classes) - CLASSES
    note = f'<p class="note">and {more} more classes</p>' if more > 0 else ""
    return f'<div class="strips{" few" if few else ""}">{"".join(lines)}</div>{note}'


def factors(facts: Facts) -> str:
    artifact = facts.artifact
    shown = []
    for name, one in artifact.stored.items():
        if one.role in ("factors", "decoder") and one.tensor.ndim >= 2 and one.tensor.numel() >= LEAST:
            shape = " x ".join(map(str, one.tensor.shape))
            shown.append(f"<figure>{picture(tiles(one.tensor), name)}<figcaption><b>{escape(name)}</b> {shape}, "
                         f"{one.role}</figcaption></figure>")  # fmt: skip
    shown += _matrix(artifact)
    values = singular(artifact.images("network", torch.arange(min(len(artifact), 64))))
    shown.append(f"<figure>{draw.spectra({'images': values}, 'Singular values of the images')}<figcaption>mean over "
                 "images and channels, largest first</figcaption></figure>")  # fmt: skip
    return f'<div class="grid">{"".join(shown)}</div>'


def _matrix(artifact: Artifact) -> list[str]:
    """Where an image is named by several numbers: the first unit of each class against what it is combined with."""
    axes = {name: size for name, size in artifact.codec.axes.items() if size > 1}
    if len(axes) < 2:
        return []
    (first, _), *others = axes.items()
    inner = 1
    for _, size in others:
        inner *= size
    rows = min(artifact.codec.axes[first], 8)
    columns = min(inner, 8)
    with torch.no_grad():
        lines = [artifact.transform.inverse(artifact.codec.decode(torch.arange(r * inner, r * inner + columns))[0].float())
                 for r in range(rows)]  # fmt: skip
    told = " x ".join([first, *(name for name, _ in others)])
    return [f"<figure>{picture(grid(lines), told)}<figcaption><b>{escape(told)}</b>: rows share one, columns the "
            "other</figcaption></figure>"]  # fmt: skip


def size(facts: Facts) -> str:
    rows = [row for row in facts.table.get("rows", []) if row["net"] == facts.table["nets"][0]]
    if not rows:
        return ""
    points = []
    for row in rows:
        if "/" in row["set"]:
            continue
        kind = row["set"].split("@")[0]
        group = {"start": "start", "full": "full"}.get(kind, "own" if kind.startswith("distilled") else "control")
        points.append({"label": named(row["set"]), "bytes": row.get("bytes", facts.table["bytes"]), "mean": row["mean"],
                       "ci95": row["ci95"], "group": group})  # fmt: skip
    left = "".join(f'<p class="note">left out: {escape(name)} ({escape(why)})</p>' for name, why in
                   facts.table.get("skipped", {}).items())  # fmt: skip
    ranked = sorted(rows, key=lambda row: -float(row["mean"]))
    body = [[named(row["set"]), row["view"], f"{row['images']:,}" if row.get("images") else "", tables.spread(row), row["n"],
             f"± {100 * row['ci95']:.1f}"] for row in ranked]  # fmt: skip
    table = _table(["trained on", "view", "images", "test accuracy, %", "n", "95 %"], body, own=0)
    held = facts.table.get("robust", {})
    robust = "".join(f"<div><b>{held[key]:.3f}</b><span>{key.upper()}</span></div>" for key in
                     ("lrs", "ars", "hlr", "ior") if key in held)  # fmt: skip
    robust = f'<div class="facts">{robust}</div>' if robust else ""
    return f"{both(partial(draw.against_bytes, points))}{table}{left}{robust}"


def cross(facts: Facts) -> str:
    head, rows = tables.cross(facts)
    return _table(head, rows) if rows else ""


def curves(facts: Facts) -> str:
    kinds = (("loss", "Matching loss", True, False), ("step_size", "Learned step size", False, False),
             ("val", "Validation accuracy", False, True), ("grad_norm", "Gradient norm", True, False))  # fmt: skip
    shown = []
    for key, title, log, percent in kinds:
        points = [(line["step"], line[key]) for line in facts.steps if isinstance(line.get(key), int | float)]
        if len(points) > 1:
            xs, ys = zip(*points, strict=True)
            colour = {"loss": draw.BLUE, "step_size": draw.ORANGE, "val": draw.GREEN, "grad_norm": draw.VIOLET}[key]
            svg = draw.line(xs, ys, title, "step", log, dots=percent, colour=colour, percent=percent)
            shown.append(f"<figure>{svg}</figure>")
    return f'<div class="grid">{"".join(shown)}</div>' if shown else ""


def experts(facts: Facts) -> str:
    if not facts.experts or len(facts.experts[0]["val_accuracy"]) < 2:
        return ""
    objective = (facts.artifact.card["config"] or {}).get("method", {}).get("objective", {})
    window = None
    if "expert_epochs" in objective:
        window = (objective["first"], objective["last"] - 1 + objective["expert_epochs"])
    return both(partial(draw.experts, facts.experts, window))


def ledger(facts: Facts) -> str:
    own = facts.artifact.ledger
    counted = sum(row["bytes"] for row in own["rows"])
    roles: dict[str, int] = {}
    for row in own["rows"]:
        roles[row["role"]] = roles.get(row["role"], 0) + row["bytes"]
    bars = [(role, float(n), f"{n:,} B", draw.ROLES[role]) for role, n in roles.items()]
    bars.append(("header", float(own["bytes"] - counted), f"{own['bytes'] - counted:,} B", draw.GREY))
    head, rows = tables.ledger(facts)
    rows = [[*row[:3], f"{row[3]:,}", row[4], f"{row[5]:,}"] for row in rows]
    total = f"{own['floats']:,} numbers, {own['bytes']:,} bytes on disk; beside it {own['beside_floats']:,} numbers"
    return f'{both(partial(draw.bars, bars, "Bytes of the file"))}{_table(head, rows)}<p class="note">{total}</p>'


def time(facts: Facts) -> str:
    known = {
        name.removesuffix("_s"): value for name, value in facts.timing.items() if name.endswith("_s") and value > 0
    }
    if not known:
        return ""
    bars = [(name, value, _clock(value), draw.BLUE) for name, value in known.items()]
    held = [
        (name.removesuffix("_peak"), value, size_text(value), draw.ORANGE)
        for name, value in facts.timing.items() if name.endswith("_peak") and value > 0
    ]  # fmt: skip
    memory = both(partial(draw.bars, held, "Peak memory of one process")) if held else ""
    return both(partial(draw.bars, bars, "Time")) + memory


def plan(facts: Facts) -> str:
    head, rows = tables.plan(facts)
    return _table(head, rows) if rows else ""


def provenance(facts: Facts) -> str:
    card = facts.artifact.card
    told = {"run": card["fingerprint"], "data": card["data"].get("content", ""), "card": card["sha256"],
            "transform": facts.artifact.transform.kind, "seeds": card["seeds"], "torch": card["versions"].get("torch"),
            "protocol": facts.table.get("protocol", ""), "chosen by": card["claim"].get("selection", "")}  # fmt: skip
    lines = "".join(f"<dt>{name}</dt><dd>{escape(str(one))}</dd>" for name, one in told.items() if one)
    return f'<dl>{lines}</dl><p class="note">Check it: <code>python -m jobs.evaluate verify=ARTIFACT</code></p>'


def named(row: str) -> str:
    """A row's name in words."""
    row, _, way = row.partition("/")
    kind, _, budget = row.partition("@")
    kind = {"distilled-8bit": "distilled, 8 bits", "start": "before any step",
            "full": "full set", "kcentre": "k-centre"}.get(kind, kind)  # fmt: skip
    return kind + {"floats": ", same floats", "raw": ", same bytes raw", "jpeg": ", same bytes JPEG"}.get(budget, "") + {
        "hard": ", hard labels", "bare": ", no augmentation"}.get(way, "")  # fmt: skip


# ---- pieces ------------------------------------------------------------------------------------------------------


def both(figure: Callable[..., str]) -> str:
    """Drawn twice, so that a phone shows letters of the same size as a desk."""
    return f'<div class="wide">{figure(width=draw.WIDE)}</div><div class="narrow">{figure(width=draw.NARROW)}</div>'


def picture(image_CHW: Tensor, told: str) -> str:
    height, width = image_CHW.shape[1:]
    return f'<img alt="{escape(told)}" width="{width}" height="{height}" src="{data_uri(png(image_CHW))}">'


def tiles(tensor: Tensor) -> Tensor:
    """The last two axes as pictures (thin ones as one table), each on its own scale: grey is zero, light is above."""
    if tensor.ndim == 4 and tensor.shape[1] == 3 and min(tensor.shape[2:]) >= THIN:
        colour = tensor.float()[:TILES]
        scaled = 0.5 + 0.5 * colour / colour.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
        return grid(scaled.split(6))
    flat = tensor.float().reshape(-1, *tensor.shape[-2:])
    if min(flat.shape[1:]) < THIN:
        table = tensor.float().flatten(1)
        flat = (table if table.shape[0] <= table.shape[1] else table.T)[None]
    flat = flat[:TILES, :TALL, : 2 * TALL]
    scaled = 0.5 + 0.5 * flat / flat.abs().amax((1, 2), keepdim=True).clamp(min=1e-12)
    across = 6 if len(scaled) > 6 else max(1, len(scaled))
    return grid([row[:, None] for row in scaled.split(across)])


def singular(images_NCHW: Tensor) -> list[float]:
    values: list[float] = torch.linalg.svdvals(images_NCHW.float().flatten(0, 1)).mean(0).tolist()
    return values


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], own: int | None = None) -> str:
    def row_class(row: Sequence[Any]) -> str:
        return ' class="own"' if own is not None and str(row[own]).startswith("distilled") else ""

    top = "".join(f"<th>{escape(str(one))}</th>" for one in head)
    lines = ("".join(f"<td>{escape(str(one))}</td>" for one in row) for row in rows)
    body = "".join(f"<tr{row_class(row)}>{line}</tr>" for row, line in zip(rows, lines, strict=True))
    return f'<div class="table"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(facts: Facts, name: str) -> Any:
    return next((row for row in facts.table.get("rows", []) if row["set"] == name), None)


def _source(artifact: Artifact) -> str:
    return str(artifact.card["data"].get("name", "a dataset"))


def _clock(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds > 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
