"""Draw the page of a run: OUT/report/index.html, one static file, with its tables as CSV and LaTeX beside it."""

from __future__ import annotations

import sys

from jobs.compose import Asked, command

DRAWN_FROM = ("artifact/card.json", "artifact/controls.json", "metrics.jsonl", "plan.json")


def act(asked: Asked) -> int:
    done = "" if reported(asked) else " is already drawn"
    print(f"page: {asked.run.at('report/index.html')}{done}\nnext: {asked.line('export')}")
    return 0


def reported(asked: Asked) -> bool:
    """Whether there was anything new to draw."""
    import hashlib

    from jobs.published import rows
    from rayd.report import report
    from rayd.store import Store

    store = Store(asked.run.out)
    data = store.read_json("artifact/card.json")["data"].get("name", "") if store.exists("artifact/card.json") else ""
    published = tuple(map(str, rows(asked.published, data)))
    seen = {name: hashlib.sha256(store.read(name)).hexdigest() for name in DRAWN_FROM if store.exists(name)}
    seen |= {"published": "\n".join(published)} if published else {}
    if seen and store.exists("report/drawn_from.json") and store.read_json("report/drawn_from.json") == seen:
        return False
    report(asked.run.out, asked.run.buffer, published=published)
    store.write_json("report/drawn_from.json", seen)
    return True


if __name__ == "__main__":
    sys.exit(command("report", __doc__, act))
