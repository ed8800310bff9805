"""The search as people run it: a job on a laptop's Ray; its worker and its driver killed, the same command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.grounds import PATIENCE, Ground, descendants, title, until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

SPACE = "{rank: [1, 2, 3, 4], method.optimiser.lr: {low: 0.001, high: 0.3, log: true}, method.objective.last: [1, 3]}"
TINY = (
    "data=digits", "data.limit=300", "data.val=100", "net.depth=1", "net.width=4", "expert=quick", "expert.experts=2",
    "expert.epochs=4", "method=mtt", "method.compiled=false", "method.steps=4", "method.objective.inner_steps=3",
    "method.objective.last=2", "method.objective.expert_epochs=1", "recipe=quick", "recipe.steps=30", "recipe.seeds=1",
    "budget.ipc=1", "scale=laptop", "method.codec={name: lodc}", "method.optimiser={name: adam, lr: 0.05}",
    f"search.space={SPACE}", "search.winner=0",
)  # fmt: skip


def command(out: Path, **more: Any) -> list[str]:
    own = {"trials": 8, "steps": 8, "every": 2, "grace": 2, **more}
    return ["python", "-m", "jobs.search", *TINY, f"out={out}", *(f"search.{name}={own[name]}" for name in own)]


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in (out / "search/results").glob("*.json")}


def trials_below(driver: int) -> list[int]:
    return [pid for pid, title in descendants(driver) if title.startswith("ray::ImplicitFunc")]


def test_eight_trials_as_a_job() -> None:
    with Ground.made() as ground:
        out = ground.folder / "out"
        code, said = ground.run(command(out))
        assert code == 0, said[-3000:]
        found = records(out)
        assert len(found) == 8
        ends = {one["end"] for one in found.values()}
        assert ends == {"finished", "stopped"}, "halving stops some and lets some through"
        assert all(0 < one["size"]["fill"] <= 1 for one in found.values())
        assert len(list((out / "experts").glob("experts-*.tar"))) == 2
        assert "8 trials" in said
        assert (out / "search/trials.parquet").is_file() and (out / "search/method/winner.yaml").is_file()


def test_killed_workers_and_drivers_cost_no_finished_trial() -> None:
    with Ground.made() as ground:
        out = ground.folder / "out"
        words = command(out, trials=5, steps=40, every=4, grace=40, scheduler="none")
        driver = ground.start(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: any((out / "search/trials").glob("*/seed-0/checkpoints/*.json")))
        os.kill(trials_below(driver.pid)[0], signal.SIGKILL)
        until(lambda: bool(records(out)))
        assert driver.poll() is None, "one killed worker must not end the search"
        before = {name: (out / "search/results" / name).stat().st_mtime_ns for name in records(out)}
        theirs = trials_below(driver.pid)
        driver.kill()
        driver.wait(PATIENCE)
        until(lambda: not any(map(title, theirs)))

        code, said = ground.run(words)
        assert code == 0, said[-3000:]
        found = records(out)
        assert sorted(one["number"] for one in found.values()) == [0, 1, 2, 3, 4]
        assert {one["end"] for one in found.values()} == {"finished"}
        assert all((out / "search/results" / name).stat().st_mtime_ns == written for name, written in before.items())
