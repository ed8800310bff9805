"""Class-incremental learning on memories of equal bytes: real images against any codec and objective.

`continual.memories` names what is compared; leaves OUT/continual. What is done is kept: the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.compose import Asked, command

if TYPE_CHECKING:
    from rayd.studies.continual.protocol import ContinualRun, Outcome


KEYS = "rayd.studies.continual.protocol:ContinualKeys"


def act(asked: Asked) -> int:
    from rayd.studies.continual.page import html, text
    from rayd.studies.continual.protocol import keep, open_store, summary

    config = asked.own.continual
    store, done, left = open_store(asked.run, config)
    total = len(done) + len(left)
    for outcome in living(asked, left):
        keep(store, config, outcome)
        done.append(outcome)
        line = " ".join(f"{100 * accuracy:.1f}" for accuracy in outcome.average)
        print(f"rayd: {len(done)}/{total} {outcome.memory}, order {outcome.order}: {line}", file=sys.stderr, flush=True)
    averages = summary(config, done)
    store.write_json("summary.json", averages)
    store.write("index.html", html(averages).encode())
    print(text(averages))
    print(f"rayd: {store.where('index.html')}")
    return 0


def living(asked: Asked, left: list[ContinualRun]) -> Iterator[Outcome]:
    from rayd.studies.continual.protocol import learn

    run, config = asked.run, asked.own.continual
    if run.scale.name == "inline":
        yield from (learn(run, config, unit) for unit in left)
        return
    from rayd.fleet.tasks import run_tasks

    for _, outcome in run_tasks(run, "continual", learn, left, config):
        yield outcome


if __name__ == "__main__":
    sys.exit(command("continual", __doc__, act, KEYS))
