"""An artifact for people: its card as text, and card, images and score table as HTML for a notebook. All text is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayd.artifact.png import data_uri
from rayd.evaluate.table import Table, html_table


def facts(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a card says first."""
    ledger, versions = card["ledger"], card["versions"]
    shape = "x".join(map(str, card["shape"]))
    rows = [
        ("method", card["sentence"] or card["codec"].get("name", "")),
        ("source", card["data"].get("name", "")),
        ("images", f"{card['images']:,} of {shape}, {len(card['classes'])} classes"),
        ("stored", f"{ledger['floats']:,} numbers, {ledger['bytes']:,} bytes, IPC {ledger['ipc']:.4g} in floats"),
        ("step size", "" if card["step_size"] is None else f"{card['step_size']:.4g}"),
        ("run", card["fingerprint"][:12]),
        ("made with", ", ".join(f"{name} {versions[name]}" for name in ("rayd", "torch") if versions.get(name))),
        ("test set read", f"{card['reads']} times"),
    ]
    return [(name, str(value)) for name, value in rows if value]


def text(card: Mapping[str, Any], table: Mapping[str, Any] | None) -> str:
    lines = [f"{name:<14}{value}" for name, value in facts(card)]
    return "\n".join([*lines, "", str(Table(table)) if table else "not scored yet: rayd.controls(artifact)"])


def html(card: Mapping[str, Any], table: Mapping[str, Any] | None, preview: bytes) -> str:
    drawn = f'<img src="{data_uri(preview)}" alt="images of each class" style="image-rendering:pixelated">'
    scored = Table(table)._repr_html_() if table else "<p>not scored yet: rayd.controls(artifact)</p>"
    return f"<div>{html_table(('card', ''), facts(card))}{drawn}{scored}</div>"
