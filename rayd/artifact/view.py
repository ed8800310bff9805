"""An artifact for people: its card as text, and card, images and score table as HTML for a notebook. All text is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
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


def table(contents: Mapping[str, bytes]) -> Table | None:
    """The score table, if there is one."""
    return Table(json.loads(contents["controls.json"])) if "controls.json" in contents else None


def text(card: Mapping[str, Any], contents: Mapping[str, bytes]) -> str:
    lines = [f"{name:<14}{value}" for name, value in facts(card)]
    scores = table(contents)
    return "\n".join([*lines, "", str(scores) if scores else "not scored yet: rayd.controls(artifact)"])


def html(card: Mapping[str, Any], contents: Mapping[str, bytes]) -> str:
    scores = table(contents)
    drawn = (
        f'<img src="{data_uri(contents["preview.png"])}" alt="images of each class" style="image-rendering:pixelated">'
    )
    scored = scores._repr_html_() if scores else f"<p>{escape('not scored yet: rayd.controls(artifact)')}</p>"
    return f"<div>{html_table(('card', ''), facts(card))}{drawn}{scored}</div>"
