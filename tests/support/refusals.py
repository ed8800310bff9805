"""A driver that asks every verb for what the cluster can never place, all at once: who was refused, how soon, and why.

python -m tests.support.refusals FOLDER     RAY_ADDRESS names a cluster of several nodes with one core each
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rayd.config import Run
from rayd.data.load import load
from rayd.errors import Refused
from rayd.fleet import cluster
from rayd.run.experts import ExpertPlan
from rayd.studies.search.points import plan
from rayd.studies.search.space import SearchConfig
from rayd.studies.search.trials import TrialTable
from tests.support.runs import small_run

KINDS: dict[str, dict[str, Any]] = {
    "cores of all nodes together": {"cpus": 2.0},
    "cores that nobody has": {"cpus": 99.0},
    "a GPU": {"gpus": 1.0},
    "half a GPU": {"gpus": 0.5},
    "more at once than fit": {"actors": 9, "workers": 9},
    "a label that no node has": {"labels": {"all": {"ray.io/market-type": "spot"}}},
    "nodes that do not come": {"cpus": 2.0, "wait": 1.0},
}
ONE_AT_A_TIME = ("blocks", "evaluate", "plan")
"""They queue for what there is: any number of them fits."""
IN_CORES = ("prepare",)
"""Takes no GPU."""


def work(run: Run) -> None:
    """Never begun."""


def verbs() -> dict[str, Callable[[Run], Iterator[Any]]]:
    """Each verb as something that begins when it is iterated over; what it reads of the data is read before."""
    from rayd.fleet.distill import distill
    from rayd.fleet.experts import build
    from rayd.fleet.plan import measure
    from rayd.fleet.prepare import prepare
    from rayd.fleet.search import search
    from rayd.fleet.tasks import run_tasks

    def planned(run: Run) -> Iterator[Any]:
        yield measure(run, 1.0)

    def searched(run: Run) -> Iterator[Any]:
        config = SearchConfig(space={"ipc": [1, 2]})
        spec = load(run.data).train.spec
        table, trials = TrialTable(run, config, spec), plan(run, config, spec).trials
        return (search(table, {trial.number: trial for trial in trials}) for _ in range(1))

    return {
        "prepare": lambda run: prepare(run.data, run.at("data"), 16, run.scale),
        "experts": lambda run: build(ExpertPlan.open(run)),
        "distill": lambda run: distill(run),
        "blocks": lambda run: run_tasks(run, "block", work, [1], place="distill"),
        "evaluate": lambda run: run_tasks(run, "evaluate", work, [1]),
        "plan": planned,
        "search": searched,
    }


def main(folder: str) -> None:
    answers: dict[str, tuple[float, str]] = {}

    def ask(verb: str, kind: str, act: Callable[[Run], Iterator[Any]]) -> None:
        scale = {"name": "cluster", "cpus": 1.0, **KINDS[kind]}
        if verb not in ("distill", "search"):
            scale.pop("workers", None)
        run = small_run(
            scale=scale,
            expert={"experts": 9, "per_shard": 1},
            out=str(Path(folder) / f"{verb}-{list(KINDS).index(kind)}"),
        )
        asked = act(run)
        began, said = time.monotonic(), "was not refused"
        try:
            list(asked)
        except Refused as refusal:
            said = str(refusal)
        answers[f"{verb}: {kind}"] = (time.monotonic() - began, said)

    acts = verbs()
    small = small_run(scale={"name": "cluster"})
    cluster.start(small.scale)
    load(small.data)  # decoded once, for all
    pairs = [
        (verb, kind)
        for verb in acts
        for kind in KINDS
        if not (kind == "more at once than fit" and verb in ONE_AT_A_TIME) and not ("GPU" in kind and verb in IN_CORES)
    ]
    threads = [threading.Thread(target=ask, args=(verb, kind, acts[verb])) for verb, kind in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(f"ANSWERS {json.dumps(answers)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
