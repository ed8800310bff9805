"""Distil a synthetic set: read what the method needs (an expert buffer, real images), leave OUT/artifact.

The same command, again, goes on from the last checkpoint; once the artifact is there it does nothing.
"""

from __future__ import annotations

import sys

from jobs.compose import Asked, command


def act(asked: Asked) -> int:
    run = asked.run
    if not distilled(asked):
        print(f"rayd: {run.at('artifact')} is already done")
        return 0
    print(f"rayd: artifact in {run.at('artifact')}\nnext: {asked.line('evaluate')}")
    return 0


def distilled(asked: Asked) -> bool:
    """Distil; whether there was anything to do."""
    from jobs.console import follow
    from rayd.api import work
    from rayd.run.distill import finished
    from rayd.store import Store

    run = asked.run
    if finished(run, Store(run.out)):
        return False
    for _ in follow(work.distilled(run), run.method.steps, "distill"):
        pass
    return True


if __name__ == "__main__":
    sys.exit(command("distill", __doc__, act))
