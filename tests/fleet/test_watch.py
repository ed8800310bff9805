"""Slow work is left alone, hung work is ended and done again: by decision, and with processes that are stopped."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rayd.config import Run
from rayd.errors import Failed
from rayd.fleet.policy import Beat, Loss, after_start, hung
from rayd.run.experts import ExpertPlan, build
from tests.support.grounds import descendants, until
from tests.support.hashes import hashes
from tests.support.runs import digits_run

EVENTS = "events.jsonl"


def test_the_age_of_the_last_beat_tells_slow_from_hung() -> None:
    slow, late = Beat("a", "step 3", 59.0, 60.0), Beat("b", "step 3", 61.0, 60.0)
    assert hung([slow, late]) == [late]
    waits, works = Beat("train", "waits", 900.0, 60.0), Beat("train", "validates", 1.0, 60.0)
    assert hung([waits, works]) == [], "one works, the others wait for it in a collective"
    assert hung([waits, Beat("train", "stopped", 61.0, 60.0)]) != [], "nobody works"
    assert hung([Beat("c", "starting", 100.0, 900.0)]) == []
    stopped, idle = (Beat(group, "waits for a unit", age, 60.0, idle=True) for group, age in (("d", 61.0), ("e", 16.0)))
    assert hung([stopped, idle, slow]) == [stopped], "one that waits beats, and whoever has no work is left alone"


def test_an_actor_that_never_starts_ends_the_run_only_where_no_other_works() -> None:
    again = after_start("actor 3", Loss.DIED, 1, 3, others=0)
    assert again.again and again.replace
    last = after_start("actor 3", Loss.DIED, 4, 3, others=0)
    assert not last.again and "given up after 4 attempts" in last.reason
    left_out = after_start("actor 3", Loss.REFUSED, 1, 3, others=7)
    assert not left_out.again and "the run goes on with 7 actors" in left_out.reason


def test_a_process_takes_the_place_of_the_one_that_died_there() -> None:
    """In a group that works together every number has a place; elsewhere there is one."""
    from rayd.fleet.monitor import Member, Monitor

    first, second, third = (Member("node", "id", pid, "0") for pid in (1, 2, 3))
    monitor = Monitor()
    monitor.begin("distill", first, 60.0, {}, 0)
    monitor.begin("distill", second, 60.0, {}, 1)
    assert {member.pid for _, member in monitor.look()[0]} == {1, 2}
    monitor.begin("distill", third, 60.0, {}, 1)
    assert {member.pid for _, member in monitor.look()[0]} == {1, 3}
    monitor.begin("evaluate 4", first, 60.0, {})
    monitor.begin("evaluate 4", second, 60.0, {})
    assert [member.pid for beat, member in monitor.look()[0] if beat.group == "evaluate 4"] == [2]
    monitor.forget("distill")
    assert [beat.group for beat, _ in monitor.look()[0]] == ["evaluate 4"]
    Monitor.beat(monitor, "trial 1", third, "step 9", 60.0)
    assert [beat.note for beat, member in monitor.look()[0] if member == third] == ["step 9"], (
        "after a start of the monitor"
    )


def scale(**more: Any) -> dict[str, Any]:
    return {"name": "laptop", "cpus": 1.0, **more}


class Stopper:
    """Stops, by its process id, the first process that `find` returns; once."""

    def __init__(self, find: Any) -> None:
        self.pid = 0
        self.find = find
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        stop = time.monotonic() + 1200
        while not self.pid and time.monotonic() < stop:
            pid = self.find()
            if pid:
                os.kill(pid, signal.SIGSTOP)
                self.pid = pid
            time.sleep(0.05)


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / EVENTS).read_text().splitlines()]


@pytest.mark.ray
def test_a_stopped_actor_is_replaced_and_the_bytes_are_the_same(ray_local: None, tmp_path: Path) -> None:
    """Stopped in its fourth epoch, in which the first actor stays until then; the second makes the same bytes."""
    from rayd.fleet import experts as fleet

    class Lasting(fleet.ExpertActor):
        def build(self, number: int) -> Any:
            from rayd.experts.train import ExpertStep
            from rayd.machine import beat

            original = ExpertStep.epoch

            def epoch(step: Any, theta: Any, velocity: Any, seeds: Any, epoch: int) -> Any:
                while self.name == "actor 1" and epoch == 4:
                    beat("epoch 4, and stays in it")
                    time.sleep(0.1)
                return original(step, theta, velocity, seeds, epoch)

            ExpertStep.epoch = epoch  # type: ignore[method-assign]
            return super().build(number)

    list(build(ExpertPlan.open(digits_run(tmp_path / "calm", experts=3, last=9))))
    run = digits_run(tmp_path / "torn", experts=3, last=9, changes={"scale": scale(actors=1, beat=8.0)})
    pids: list[int] = []
    stopper = Stopper(lambda: pids[0] if pids else 0)
    began = time.monotonic()
    for progress in fleet.build(ExpertPlan.open(run), actor_class=Lasting):
        pids[:] = progress.pids if progress.now.startswith("epoch 4") else ()
    assert stopper.pid and progress.retried == 1 and time.monotonic() - began < 240
    assert hashes(tmp_path / "torn" / "experts") == hashes(tmp_path / "calm" / "experts")
    kinds = [event["event"] for event in events(tmp_path / "torn")]
    assert "hung" in kinds and "lost" in kinds and kinds.count("start") >= 2
    hang = next(event for event in events(tmp_path / "torn") if event["event"] == "hung")
    assert hang["pid"] == stopper.pid and "no beat for" in hang["text"]


@pytest.mark.ray
def test_an_actor_that_stands_still_between_two_units_is_replaced(ray_local: None, tmp_path: Path) -> None:
    """Given a unit that it has not begun, it has nothing to beat for."""
    from rayd.fleet import experts as fleet

    class Stopped(fleet.ExpertActor):
        def build(self, number: int) -> Any:
            if self.name == "actor 1" and number == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            return super().build(number)

    run = digits_run(tmp_path, experts=3, changes={"scale": scale(actors=1, beat=6.0)})
    *_, progress = fleet.build(ExpertPlan.open(run), actor_class=Stopped)
    assert (progress.done, progress.retried) == (3, 1)
    assert [event["group"] for event in events(tmp_path) if event["event"] == "hung"] == ["actor 1"]


@pytest.mark.ray
def test_a_writer_that_stands_still_between_two_units_is_replaced(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayd.data.prepare import prepare as here
    from rayd.fleet import prepare as fleet

    stopped = tmp_path / "stopped"

    class Stopped(fleet.Writer):
        def __call__(self, batch: Any) -> Any:
            try:
                stopped.touch(exist_ok=False)
            except FileExistsError:
                return super().__call__(batch)
            os.kill(os.getpid(), signal.SIGSTOP)
            return super().__call__(batch)

    monkeypatch.setattr(fleet, "Writer", Stopped)
    run = digits_run(tmp_path, changes={"scale": scale(actors=2, beat=6.0)})
    list(here(run.data, str(tmp_path / "calm"), 300))
    list(fleet.prepare(run.data, str(tmp_path / "torn"), 300, run.scale))
    assert hashes(tmp_path / "torn", "*.npy") == hashes(tmp_path / "calm", "*.npy") != {}
    ended = [event["event"] for event in events(tmp_path / "torn")].count("hung")
    assert ended == 1, "the other one, which soon has no work, is left alone"


@pytest.mark.ray
def test_slow_actors_are_left_alone(ray_local: None, tmp_path: Path) -> None:
    """Every epoch takes half the age at which work counts as hung, and a unit twice it."""
    from rayd.fleet import experts as fleet

    class Slow(fleet.ExpertActor):
        def build(self, number: int) -> Any:
            from rayd.experts.train import ExpertStep

            original = ExpertStep.epoch

            def epoch(*arguments: Any) -> Any:
                time.sleep(3.0)
                return original(*arguments)

            ExpertStep.epoch = epoch  # type: ignore[method-assign]
            return super().build(number)

    run = digits_run(tmp_path, experts=1, changes={"scale": scale(actors=1, beat=6.0)})
    *_, progress = fleet.build(ExpertPlan.open(run), actor_class=Slow)
    assert (progress.done, progress.retried) == (1, 0)


@pytest.mark.ray
def test_a_bad_start_is_told_in_one_line(ray_local: None, tmp_path: Path) -> None:
    """What an actor meets when it opens its data reaches the user as it was said, not as the actor's death."""
    from rayd.fleet import experts as fleet

    class Blind(fleet.ExpertActor):
        def ready(self) -> dict[str, Any]:
            raise Failed("data/train.parquet: no such file on this node")

    run = digits_run(tmp_path, experts=1, changes={"scale": scale(actors=1)})
    with pytest.raises(Failed) as caught:
        list(fleet.build(ExpertPlan.open(run), actor_class=Blind))
    assert str(caught.value) == "data/train.parquet: no such file on this node"


def work(run: Run, folder: str, unit: int) -> int:
    """Hangs the first time that unit 1 is tried, and warns."""
    from rayd.machine import beat

    tried = Path(folder) / f"tried-{unit}"
    first = not tried.exists()
    tried.write_text("")
    beat("at work")
    if unit == 1 and first:
        logging.getLogger("rayd.work").warning("about to hang")
        time.sleep(600)
    return 10 * unit


def always_hangs(run: Run, unit: int) -> int:
    from rayd.machine import beat

    beat("at work")
    time.sleep(600)
    return unit


@pytest.mark.ray
def test_a_hung_task_is_tried_again_and_its_warning_is_heard(
    ray_local: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from rayd.fleet.tasks import run_tasks

    run = digits_run(tmp_path, changes={"scale": scale(beat=3.0, startup=120.0)})
    with caplog.at_level(logging.WARNING):
        assert dict(run_tasks(run, "test", work, [0, 1, 2], str(tmp_path))) == {0: 0, 1: 10, 2: 20}
    assert "about to hang" in caplog.text and "is hung: no beat for" in caplog.text
    left = json.loads((tmp_path / "work.json").read_text())
    assert left["seconds"]["test"] > 3 and left["beats"] == [], "who worked how long, and nobody works any more"


def works_slowly(run: Run, unit: int) -> int:
    """Six steps, each of half the age at which work counts as hung."""
    from rayd.machine import beat

    for step in range(6):
        beat(f"step {step}")
        time.sleep(2.0)
    return unit


@pytest.mark.ray
@pytest.mark.slow
def test_slow_tasks_are_left_alone(ray_local: None, tmp_path: Path) -> None:
    from rayd.fleet.tasks import run_tasks

    run = digits_run(tmp_path, changes={"scale": scale(beat=4.0, startup=120.0, max_failures=0)})
    assert dict(run_tasks(run, "test", works_slowly, [1, 2])) == {1: 1, 2: 2}
    assert "hung" not in {event["event"] for event in events(tmp_path)}


@pytest.mark.ray
@pytest.mark.slow
def test_a_start_that_hangs_ends_within_its_bound(ray_local: None, tmp_path: Path) -> None:
    from rayd.fleet import experts as fleet

    class Sleepy(fleet.ExpertActor):
        def ready(self) -> dict[str, Any]:
            from rayd.fleet.watch import beating

            with beating(self.pulse, self.name):
                time.sleep(600)
            return {}

    run = digits_run(tmp_path, experts=1, changes={"scale": scale(actors=1, startup=5.0, beat=5.0, max_failures=1)})
    began = time.monotonic()
    with pytest.raises(Failed, match=r"given up after 2 attempts \(scale\.max_failures=1\)"):
        list(fleet.build(ExpertPlan.open(run), actor_class=Sleepy))
    assert time.monotonic() - began < 120


@pytest.mark.ray
def test_a_task_that_always_hangs_ends_the_run_with_the_reason(ray_local: None, tmp_path: Path) -> None:
    from rayd.fleet.tasks import run_tasks

    run = digits_run(tmp_path, changes={"scale": scale(beat=2.0, startup=120.0, max_failures=1)})
    with pytest.raises(Failed, match=r"lost 2 times \(scale\.max_failures\); the last time: no beat for"):
        list(run_tasks(run, "test", always_hangs, [1]))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("verb", ["prepare", "search"])
def test_a_cluster_that_others_hold_is_waited_for_within_bounds(busy_cluster: None, tmp_path: Path, verb: str) -> None:
    from tests.support.refusals import verbs

    busy = digits_run(tmp_path, changes={"scale": scale(startup=5.0, actors=1)})
    with pytest.raises(Failed, match=r"scale\.startup=5 s"):
        list(verbs()[verb](busy))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["RayTrainWorker", "TrainController"])
def test_a_stopped_part_of_train_is_replaced(ray_local: None, tmp_path: Path, victim: str) -> None:
    """One of two workers stands still, and the other waits for it: both are ended, and the group goes on. Or their
    controller does: it is ended, and another takes its place."""
    from rayd.fleet.distill import distill
    from rayd.run import distill as here

    experts = digits_run(tmp_path / "experts-run")
    list(build(ExpertPlan.open(experts)))

    def run(folder: str, **place: Any) -> Run:
        objective = {"items": 2, "inner_steps": 6, "batch": 10}
        method = {"compiled": False, "steps": 60, "checkpoint": 5, "objective": objective}
        changes = {"method": method, "buffer": experts.experts_at, "scale": place}
        return digits_run(tmp_path / folder, changes=changes)

    list(here.distill(run("calm")))
    torn = run("torn", name="laptop", workers=2, cpus=0.5, beat=15.0)

    def worker() -> int:
        if not any((tmp_path / "torn" / "checkpoints").glob("step-*.json")):
            return 0
        return next((pid for pid, name in descendants(os.getpid()) if victim in name), 0)

    stopper = Stopper(worker)
    list(distill(torn))
    assert stopper.pid
    until(lambda: (tmp_path / "torn" / "artifact" / "card.json").exists(), seconds=5)
    codecs = [(tmp_path / name / "artifact" / "codec.safetensors").read_bytes() for name in ("calm", "torn")]
    assert codecs[0] == codecs[1]
    hangs = [event for event in events(tmp_path / "torn") if event["event"] == "hung"]
    assert any(event["pid"] == stopper.pid for event in hangs)


def test_a_notice_makes_a_checkpoint_and_changes_no_number(tmp_path: Path) -> None:
    from dataclasses import replace

    from rayd.run.distill import Worker, distill
    from rayd.store import Store

    experts = digits_run(tmp_path / "experts-run")
    list(build(ExpertPlan.open(experts)))
    run = replace(digits_run(tmp_path / "calm"), buffer=experts.experts_at)
    run = replace(run, method=replace(run.method, compiled=False, steps=6, checkpoint=100))
    torn = replace(run, out=str(tmp_path / "torn"))
    list(distill(run))
    notices = iter([False, False, True, False, False])
    walk = distill(torn, Worker(notice=lambda: next(notices)))
    for _ in range(4):
        next(walk)
    walk.close()
    assert [name for name in Store(torn.at("checkpoints")).list() if name.startswith("step-")] == [
        "step-000003.json", "step-000003.safetensors"
    ]  # fmt: skip
    assert [step.number for step in distill(torn)] == [4, 5, 6]
    codecs = [(tmp_path / name / "artifact" / "codec.safetensors").read_bytes() for name in ("calm", "torn")]
    assert codecs[0] == codecs[1]
