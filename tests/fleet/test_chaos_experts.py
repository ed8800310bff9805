"""Actors killed at random moments: every shard arrives, and its bytes are those of an undisturbed inline run."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayd.experts.buffer import verify
from rayd.run.experts import ExpertPlan, build
from rayd.store import Store
from tests.support.hashes import hashes
from tests.support.loopback import s3_server
from tests.support.runs import digits_run

UNITS = 4
PLAN: dict[str, Any] = {"experts": 2 * UNITS, "per_shard": 2, "last": 9}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    run = digits_run(tmp_path_factory.mktemp("inline"), **PLAN)
    list(build(ExpertPlan.open(run)))
    return hashes(run.experts_at)


class Killer:
    """Kills, by its process id, a random one of the workers it is shown, at random moments, so many times. `struck`: a file
    that is there after the first."""

    def __init__(self, kills: int, seed: int, struck: Path) -> None:
        self.struck = struck
        self.rng, self.left, self.killed = random.Random(seed), kills, 0
        self.pids: tuple[int, ...] = ()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._hunt, daemon=True)

    def _hunt(self) -> None:
        while self.left and not self.over.wait(self.rng.uniform(0.05, 1.5)):
            if self.pids:
                pid, self.pids = self.rng.choice(self.pids), ()
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                self.left -= 1
                self.killed += 1
                self.struck.touch()


def round_of_chaos(out: Path | str, kills: int, seed: int, struck: Path) -> int:
    """One run with two actors under fire; returns how many were killed. Its units last until one was."""
    from rayd.fleet import experts as fleet

    class Lasting(fleet.ExpertActor):
        def build(self, number: int) -> Any:
            from rayd.experts.train import ExpertStep
            from rayd.machine import beat

            original = ExpertStep.epoch

            def epoch(step: Any, theta: Any, velocity: Any, seeds: Any, epoch: int) -> Any:
                while epoch == 4 and not struck.exists():
                    beat("epoch 4, and stays in it")
                    time.sleep(0.05)
                return original(step, theta, velocity, seeds, epoch)

            ExpertStep.epoch = epoch  # type: ignore[method-assign]
            return super().build(number)

    killer = Killer(kills, seed, struck)
    killer.thread.start()
    scale = {"name": "laptop", "actors": 2, "timeout": 120.0, "max_failures": 50}
    beside = {"out": str(struck.parent / "run")} if "://" in str(out) else {}
    run = digits_run(out, changes={"scale": scale, **beside}, **PLAN)
    for progress in fleet.build(ExpertPlan.open(run), actor_class=Lasting):
        killer.pids = progress.pids
    killer.over.set()
    killer.thread.join(timeout=5)
    assert progress.done + progress.skipped == UNITS
    return killer.killed


def check(uri: str, undisturbed: dict[str, str]) -> None:
    assert verify(uri) == []
    assert hashes(uri) == undisturbed
    local = Store(uri).local
    assert local is None or not list(local.glob(".*")), "temporary files were left behind"


@pytest.mark.ray
def test_a_killed_actor_changes_no_byte(ray_local: None, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    killed = round_of_chaos(tmp_path, kills=2, seed=0, struck=tmp_path / "struck")
    assert killed >= 1
    check(str(tmp_path / "experts"), undisturbed)


@pytest.mark.ray
@pytest.mark.slow
def test_twenty_killed_actors_change_no_byte(
    ray_local: None, tmp_path: Path, undisturbed: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    killed = rounds = 0
    with caplog.at_level(logging.WARNING):
        while killed < 20:
            killed += round_of_chaos(
                tmp_path / str(rounds), min(6, 20 - killed), rounds + 1, tmp_path / f"struck-{rounds}"
            )
            check(str(tmp_path / str(rounds) / "experts"), undisturbed)
            rounds += 1
            assert rounds < 20
    noticed = caplog.text.count("its worker died")
    assert killed - 2 * rounds <= noticed <= killed, "only an actor that had just made its last unit dies unnoticed"


@pytest.fixture
def bucket() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


@pytest.mark.ray
@pytest.mark.slow
def test_chaos_on_an_object_store(ray_local: None, bucket: str, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    killed = rounds = 0
    while killed < 20:
        uri = Store(bucket).sub(str(rounds)).uri
        killed += round_of_chaos(uri, min(6, 20 - killed), rounds + 1, tmp_path / f"struck-{rounds}")
        check(uri, undisturbed)
        rounds += 1
        assert rounds < 20
