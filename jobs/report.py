"""Draw the page of a run: OUT/report/index.html, one static file, with its tables as CSV and LaTeX beside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.compose import Asked, command

KEYS = "jobs.report:Keys"
DRAWN_FROM = ("artifact/card.json", "artifact/controls.json", "metrics.jsonl", "plan.json")


@dataclass(frozen=True)
class Keys:
    beside: tuple[str, ...] = ()
    """Folders of other runs, scored under the same recipe: accuracy against bytes has their sets and controls as well."""


def act(asked: Asked) -> int:
    done = "" if reported(asked, asked.own.beside) else " is already drawn"
    print(f"page: {asked.run.at('report/index.html')}{done}\nnext: {asked.line('export')}")
    return 0


def reported(asked: Asked, beside: Sequence[str] = ()) -> bool:
    """Draw the page; false where nothing has changed since."""
    import hashlib

    from jobs.published import rows
    from rayd.artifact.load import read_card
    from rayd.errors import require
    from rayd.report import report
    from rayd.store import Store

    require("report", "report")
    store = Store(asked.run.out)
    data = read_card(store.sub("artifact"))["data"].get("name", "") if store.exists("artifact/card.json") else ""
    published = tuple(map(str, rows(asked.published, data)))
    digests = {name: hashlib.sha256(store.read(name)).hexdigest() for name in DRAWN_FROM if store.exists(name)}
    digests |= {"published": "\n".join(published)} if published else {}
    for folder in beside:
        other = Store(folder)
        scores = [name for name in ("controls.json", "artifact/controls.json") if other.exists(name)]
        digests |= {f"beside {folder}": hashlib.sha256(other.read(name)).hexdigest() for name in scores}
    if digests and store.exists("report/drawn_from.json") and store.read_json("report/drawn_from.json") == digests:
        return False
    report(asked.run.out, asked.run.buffer, published=published, methods=asked.run.methods, beside=tuple(beside))
    store.write_json("report/drawn_from.json", digests)
    return True


if __name__ == "__main__":
    sys.exit(command("report", __doc__, act, KEYS))
