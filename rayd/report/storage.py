"""Sections on bytes: accuracy against them, where those of one set go, and a sample as stored beside the same as fp32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rayd.artifact.png import grid as mosaic
from rayd.distill.storage import FORM, SCALE
from rayd.errors import refuse
from rayd.evaluate.row import RowName
from rayd.report import draw, tables
from rayd.report.pieces import EMPTY, both, captioned, cells, picture
from rayd.report.shell import Html, joined, table, tag

if TYPE_CHECKING:
    from rayd.artifact.load import Artifact
    from rayd.report.facts import Facts

FILES = {"head": "tables", "lengths": "lengths", "scans": "images", "stream": "images"}
"""What the tensors of a set of JPEG files are for: quantisation steps and Huffman codes, sizes, pixels."""
LEFT_OUT = ("start", "distilled-8bit")
"""Rows that the figure of several sets does without."""
SHOWN = 10
"""Images of the sample."""
GREY_LEVELS = 255


# ---- accuracy against bytes ----------------------------------------------------------------------------------------


def size(facts: Facts) -> Html:
    rows = _rows(facts)
    if not rows:
        return EMPTY
    several = len(facts.beside) > 0
    points = {
        (point["label"], point["bytes"], point["mean"]): point
        for one in (facts, *facts.beside)
        for row in _rows(one)
        if not RowName.parse(row["set"]).way and not (several and RowName.parse(row["set"]).kind in LEFT_OUT)
        for point in [_point(one, row, several)]
    }
    skipped = facts.table.get("skipped", {})
    notes = (tag("p", f"left out: {name} ({reason})", class_="note") for name, reason in skipped.items())
    ranked = sorted(rows, key=lambda row: -float(row["mean"]))
    body = [
        [RowName.parse(row["set"]).label, row["view"], f"{row['images']:,}" if row.get("images") else "",
         f"{_bytes(facts, row):,}", tables.spread(row), row["n"], f"± {tables.points(row['ci95'])}"]
        for row in ranked
    ]  # fmt: skip
    head = ["trained on", "view", "images", "bytes", "test accuracy, %", "n", "95 %"]
    robust = facts.table.get("robust", {})
    scores = {key.upper(): f"{robust[key]:.3f}" for key in ("lrs", "ars", "hlr", "ior") if key in robust}
    figure = both(partial(draw.against_bytes, list(points.values()), several)) if points else EMPTY
    return joined([figure, table(head, body, marked=0), *notes, cells(scores) if scores else EMPTY])


def comparable(facts: Facts, others: Iterable[tuple[str, Facts]]) -> tuple[Facts, ...]:
    """The others, each scored under the same protocol, or refused with its place."""
    sets = []
    for where, other in others:
        if other.table.get("protocol") != facts.table.get("protocol") or not _rows(other):
            what = other.table.get("recipe", {}).get("name", "not scored")
            same = facts.table.get("recipe", {}).get("name", "none")
            raise refuse(
                "beside", f"{where} ({what})", f"sets scored as this one: same data, networks and recipe {same}"
            )
        sets.append(other)
    return tuple(sets)


def _rows(facts: Facts) -> list[Any]:
    """Of the first network."""
    return [row for row in facts.table.get("rows", []) if row["net"] == facts.table["nets"][0]]


def _bytes(facts: Facts, row: Any) -> int:
    return int(row.get("bytes", facts.table["bytes"]))


def _point(facts: Facts, row: Any, several: bool) -> dict[str, Any]:
    name = RowName.parse(row["set"])
    group = name.kind if name.kind in ("start", "full") else "own" if name.kind.startswith("distilled") else "control"
    label = set_name(facts.artifact) if several and group == "own" else name.label
    return {"label": label, "bytes": _bytes(facts, row), "mean": row["mean"], "ci95": row["ci95"], "group": group}


def set_name(artifact: Artifact) -> str:
    """Codec and storage."""
    codec = artifact.card["codec"]
    storage = codec.get("storage", "fp32")
    return f"{codec.get('name', 'set')}{'' if storage == 'fp32' else f' {storage}'}"


# ---- where the bytes go --------------------------------------------------------------------------------------------


def ledger(facts: Facts) -> Html:
    whole = facts.artifact.ledger
    parts = parts_of(facts.artifact)
    bars = [
        (name, float(n), f"{n:,} B, {n / max(whole['bytes'], 1):.1%}", COLOURS.get(name, draw.GREY))
        for name, n in sorted(parts.items(), key=lambda part: -part[1])
    ]
    head, rows = tables.ledger(facts)
    rows = [[*row[:3], f"{row[3]:,}", row[4], f"{row[5]:,}"] for row in rows]
    total = (
        f"{whole['floats']:,} numbers, {sum(parts.values()):,} bytes on disk; "
        f"beside it {whole['beside_floats']:,} numbers"
    )
    return joined(
        [both(partial(draw.bars, bars, "Bytes of the file")), table(head, rows), tag("p", total, class_="note")]
    )


COLOURS = {
    **draw.ROLES, "images": draw.BLUE, "scales": draw.GREEN, "tables": draw.VIOLET, "lengths": draw.ORANGE,
}  # fmt: skip


def parts_of(artifact: Artifact) -> dict[str, int]:
    """Bytes of the stored file by what they are for: they sum to its size."""
    files = FILES if artifact.card["codec"].get("name") == "jpeg" else {}
    parts: dict[str, int] = {}
    for row in artifact.ledger["rows"]:
        name = row["name"]
        part = "scales" if name.endswith(SCALE) else "layouts" if name.endswith(FORM) else files.get(name, row["role"])
        parts[part] = parts.get(part, 0) + row["bytes"]
    return parts | {"header": artifact.ledger["bytes"] - sum(parts.values())}


# ---- as stored, and before ---------------------------------------------------------------------------------------


def rounding(facts: Facts) -> Html:
    """One image of each class as stored and as the fp32 numbers behind it give it, and their difference."""
    artifact = facts.artifact
    if not any(one.storage != "fp32" or not one.tensor.is_floating_point() for one in artifact.stored.values()):
        return tag("p", "Stored in fp32: every number is stored as it was learned.", class_="note")
    if not facts.unrounded:
        where = tag("code", "unrounded.safetensors")
        words = (
            "The fp32 numbers behind this set are not at hand. A distillation leaves a sample of them in its folder ("
        )
        return tag("p", words, where, "), an artifact has none.", class_="note")
    index, before = facts.unrounded["index"][:SHOWN], facts.unrounded["pixels"][:SHOWN]
    stored = artifact.images(index=index)
    gap = GREY_LEVELS * (stored - before)
    largest = float(gap.abs().max())
    scale = max(largest, 1.0)
    rows: Mapping[str, Any] = {
        "as stored": stored.clamp(0, 1),
        "as fp32": before.clamp(0, 1),
        "difference": 0.5 + 0.5 * gap / scale,
    }
    strips = [captioned(picture(mosaic([images]), name), tag("b", name)) for name, images in rows.items()]
    words = f"Difference: {float(gap.square().mean().sqrt()):.2f} grey levels of {GREY_LEVELS} (root mean square), "
    note = f"{words}{largest:.1f} at most; grey is none, black and white are {scale:.1f}."
    return joined(
        [tag("div", *(tag("figure", strip) for strip in strips), class_="rows"), tag("p", note, class_="note")]
    )
