"""Look at a run while it goes on: stages, loss, images so far, cost so far, beats, events, warnings; Ctrl-C ends it.

On the terminal, and as OUT/watch.html, a static page that reloads itself. Reads what the run leaves in `out`, a folder or a
URI, and takes no lease: look at any run, from any machine that sees its folder.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from jobs.compose import Asked, command

KEYS = "jobs.watch:Keys"
CLEAR = "\x1b[H\x1b[J"


@dataclass(frozen=True)
class Keys:
    every: float = 10.0
    """Seconds between two looks."""
    rate: float = 0.0
    """Price of one process for an hour: what the run has cost so far is shown in it."""
    to: str | None = None
    """Folder or URI for the page, watch.html; null: OUT."""
    looks: int = 0
    """Number of looks, after which it ends; 0: until Ctrl-C."""


def act(asked: Asked) -> int:
    from rayd.errors import Failed, Refused, refuse
    from rayd.report.live import html, lines, look
    from rayd.store import Store

    own, run = asked.own, asked.run
    if own.every < 1:
        raise refuse("every", own.every, "one second or more")
    store, page = Store(run.out), Store(own.to or run.out)
    if not store.list():
        raise Refused(f"out={run.out}: nothing is there yet; start a run with this out, or give its folder")
    print(f"page: {page.where('watch.html')}", flush=True)
    number = 0
    while True:
        try:
            live = look(store, Store(run.experts_at), time.time())
            page.write("watch.html", html(live, own.rate, own.every).encode())
            text = "\n".join(lines(live, own.rate))
        except Failed as error:
            text = f"{error}; looked for again in {own.every:g} s"
        print((CLEAR if sys.stdout.isatty() else "") + text, flush=True)
        number += 1
        if number == own.looks:
            return 0
        try:
            time.sleep(own.every)
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(command("watch", __doc__, act, KEYS))
