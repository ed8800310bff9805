"""What Prometheus reads of a healthy, a hung and a failing run: recorded from real ones for the test of the alerts.

python -m tests.support.metrics     records all three into tests/support/metrics.json, minutes on two cores
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.grounds import Ground, Head, descendants, until

RECORDED = Path(__file__).with_suffix(".json")
EVERY = 5.0
DROPPED = ("SessionName", "Version", "WorkerId", "NodeAddress", "instance", "Component", "otel_scope_name")
"""Labels that name a process or a machine."""
TINY = (
    "data=digits", "data.limit=256", "net.depth=2", "net.width=8", "expert=quick", "expert.experts=6", "expert.epochs=150",
    "expert.keep=all", "method=mtt", "method.objective.last=2", "method.compiled=false", "scale=cluster", "scale.cpus=1",
    "scale.gpus=0", "scale.threads=1", "scale.actors=1", "scale.max_failures=50", "scale.beat=15",
)  # fmt: skip
LINE = re.compile(r"^(ray_rayd_\w+)\{([^}]*)\} (\S+)", re.M)


def scrape(url: str) -> dict[str, float]:
    """Our series and their values."""
    found: dict[str, float] = {}
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=EVERY) as answer:
        for name, labels, value in LINE.findall(answer.read().decode()):
            kept = [label for label in re.findall(r'(\w+)="([^"]*)"', labels) if label[0] not in DROPPED and label[1]]
            inside = ",".join(f'{key}="{text}"' for key, text in sorted(kept))
            found[f"{name}{{{inside}}}"] = float(value)
    return found


def record(disturb: Callable[[list[int], int], bool]) -> dict[str, Any]:
    """One run of experts to its end and two scrapes beyond. `disturb` gets the actors' processes and the number of the
    scrape."""
    with Ground.made() as ground:
        head = Head(ground, cpus=1)
        until(head.ready, every=1.0)
        words = ["python", "-m", "jobs.experts", *TINY, f"out={ground.folder / 'out'}"]
        command = ["ray", "job", "submit", "--address", head.url, "--working-dir", ".", "--", *words]
        with open(ground.folder / "job.log", "w") as log:
            job = ground.start(command, stdout=log, stderr=subprocess.STDOUT)
        scrapes: list[dict[str, float]] = []
        beyond = 0
        while beyond < 2:
            time.sleep(EVERY)
            scrapes.append(scrape(head.metrics))
            actors = [pid for pid, name in descendants(head.child.pid) if name.startswith("ray::ExpertActor.build")]
            if job.poll() is None:
                disturb(actors, len(scrapes))
            else:
                beyond += 1
        assert job.returncode == 0, (ground.folder / "job.log").read_text()[-3000:]
    names = sorted({name for one in scrapes for name in one})
    return {"every": EVERY, "series": {name: [one.get(name) for one in scrapes] for name in names}}


def main() -> None:
    stopped: list[int] = []

    def hang(actors: list[int], number: int) -> bool:
        if actors and not stopped:
            stopped.append(actors[0])
            os.kill(actors[0], signal.SIGSTOP)
        return True

    killed: list[int] = []

    def fail(actors: list[int], number: int) -> bool:
        if actors and len(killed) < 5 and actors[0] not in killed:
            killed.append(actors[0])
            os.kill(actors[0], signal.SIGKILL)
        return True

    runs = {"healthy": record(lambda actors, number: True), "hung": record(hang), "failing": record(fail)}
    RECORDED.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
