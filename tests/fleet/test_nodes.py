"""Nodes that go away: in every stage one of three is killed at a random moment, and what comes out is the same.

A round submits the command, kills, and where the job failed submits it once more. One round is in `make test`; `make chaos`
runs ten.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.grounds import PATIENCE, Ground, Nodes, descendants, end, until
from tests.support.hashes import hashes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

ROUNDS = int(os.environ.get("RAYD_ROUNDS", "10"))
TINY = (
    "data=digits", "data.limit=256", "net.depth=2", "net.width=8", "expert=quick", "expert.experts=8", "expert.epochs=6",
    "method=mtt", "method.objective.last=2", "method.objective.inner_steps=4", "method.objective.batch=20",
    "method.objective.items=2", "method.compiled=false", "method.steps=300", "method.checkpoint=10", "budget.ipc=2",
    "recipe.steps=60", "recipe.seeds=2", "scale.threads=1",
)  # fmt: skip
ON_NODES = ("scale=cluster", "scale.cpus=1", "scale.gpus=0", "scale.timeout=120")
SEARCH = (
    "search.space={ipc: [1, 2, 3]}", "search.scheduler=none", "search.steps=100", "search.every=20", "search.grace=20",
    "search.winner=0",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """What is run, and from which file on it may be disturbed."""

    name: str
    words: tuple[str, ...]
    """Beyond those of every stage."""
    apart: tuple[str, ...]
    """Where it runs on nodes."""
    begun: str
    within: float
    """Seconds after that, in which the blow falls."""
    before: tuple[str, ...]
    """Verbs that must have been run."""
    leaves: str
    """What must be the same in the end."""


STAGES = {
    "experts": Stage("experts", (), (), "experts/experts-*.json", 1, (), "experts/*.tar"),
    "distill": Stage(
        "distill", (), ("scale.workers=2",), "checkpoints/step-*.json", 8, ("experts",), "artifact/codec.safetensors"
    ),
    "search": Stage(
        "search",
        SEARCH,
        (),
        "search/trials/*/seed-0/metrics.jsonl",
        12,
        ("experts",),
        "search/trials/*/*/artifact/codec.*",
    ),
    "evaluate": Stage(
        "evaluate",
        ("controls=false",),
        (),
        "artifact/card.json",
        25,
        ("experts", "distill"),
        "artifact/codec.safetensors",
    ),
}


def command(verb: str, out: Path, scale: tuple[str, ...], *more: str) -> list[str]:
    return ["python", "-m", f"jobs.{verb}", *TINY, *scale, f"out={out}", *more]


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[Ground]:
    """The same runs in one process without Ray, in its folder `calm`: what every round must come to."""
    with Ground.made() as ground:
        out = ground.folder / "calm"
        code, said = ground.run(command("experts", out, ("scale=inline",)))
        assert code == 0, said[-3000:]
        yield ground


@pytest.fixture(scope="module")
def all_undisturbed(undisturbed: Ground) -> Ground:
    """The other stages, too."""
    for name in ("distill", "search", "evaluate"):
        words = command(name, undisturbed.folder / "calm", ("scale=inline",), *STAGES[name].words)
        code, said = undisturbed.run(words)
        assert code == 0, said[-3000:]
    return undisturbed


def round_of(stage: Stage, seed: int, undisturbed: Ground) -> str:
    """One round; returns how it went. Where the machine was done before the blow fell, again with a sooner one."""
    rng, how = random.Random(seed), "too late"
    for halved in range(4):
        if how == "too late":
            how = one_round(stage, rng.uniform(0, stage.within / 2**halved), rng.choice((1, 2)), undisturbed)
    return how


def one_round(stage: Stage, after_s: float, node: int, undisturbed: Ground) -> str:
    """Kill that node so long after the stage has begun."""
    with Ground.made(undisturbed.code) as ground:
        nodes, out = Nodes(ground, (1, 1, 1)), ground.folder / "out"
        env = {"RAY_ADDRESS": nodes.address}
        for verb in stage.before:
            code, said = ground.run(command(verb, out, ("scale=inline",)))
            assert code == 0, said[-3000:]
        words = command(stage.name, out, ON_NODES, *stage.words, *stage.apart)
        log = ground.folder / "job.log"
        with open(log, "w") as file:
            job = ground.start(words, env={**ground.env, **env}, stdout=file, stderr=subprocess.STDOUT)
        until(lambda: any(out.glob(stage.begun)) or job.poll() is not None)
        time.sleep(after_s)
        at_work = job.poll() is None
        nodes.kill(node)
        try:
            code = job.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            end(job)
            raise AssertionError(f"hung after a node was lost:\n{log.read_text()[-3000:]}") from None
        how = "through" if code == 0 else "submitted again"
        if code != 0:
            assert "rayd: " in log.read_text(), log.read_text()[-3000:]
            code, said = ground.run(words, env)
            assert code == 0, said[-3000:]
        compare(stage, out, undisturbed.folder / "calm")
        return how if at_work else "too late"


def compare(stage: Stage, out: Path, calm: Path) -> None:
    """Byte for byte where the arithmetic is the same, score for score at the end."""
    assert left(out, stage.leaves) == left(calm, stage.leaves) != {}
    if stage.name == "evaluate":
        scores = [json.loads((where / "artifact" / "card.json").read_text())["scores"] for where in (out, calm)]
        assert scores[0] == scores[1]


def left(out: Path, leaves: str) -> dict[str, str]:
    """Hashes of a stage's files; the stages after it may have left files of the same name deeper down."""
    folder, _, pattern = leaves.partition("/")
    return hashes(out / folder, pattern)


def test_a_node_lost_while_experts_are_made(undisturbed: Ground) -> None:
    assert round_of(STAGES["experts"], 0, undisturbed) == "through"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_node_lost_anywhere(all_undisturbed: Ground, number: int, record_property: Callable[..., None]) -> None:
    stage = list(STAGES.values())[number % len(STAGES)]
    how = round_of(stage, 100 + number, all_undisturbed)
    record_property(stage.name, how)
    warnings.warn(f"{stage.name}: {how}", stacklevel=1)


@pytest.mark.slow
def test_storage_that_fails_for_a_while(undisturbed: Ground) -> None:
    """A file stands where the folder of the shards was, for some seconds: nothing committed is lost."""
    with Ground.made(undisturbed.code) as ground:
        nodes, out = Nodes(ground, (2,)), ground.folder / "out"
        env = {"RAY_ADDRESS": nodes.address}
        words, log = command("experts", out, ON_NODES), ground.folder / "job.log"
        with open(log, "w") as file:
            job = ground.start(words, env={**ground.env, **env}, stdout=file, stderr=subprocess.STDOUT)
        shards, aside = out / "experts", out / "aside"
        until(lambda: any(shards.glob("experts-*.json")))
        shards.rename(aside)
        shards.write_text("not a folder")
        time.sleep(10)
        shards.unlink()
        aside.rename(shards)
        if job.wait(PATIENCE) != 0:
            assert "rayd: " in log.read_text(), log.read_text()[-3000:]
            code, said = ground.run(words, env)
            assert code == 0, said[-3000:]
        compare(STAGES["experts"], out, undisturbed.folder / "calm")


@pytest.mark.slow
def test_a_node_that_is_told_to_stop_gets_no_further_units() -> None:
    """The notice that a cloud's watcher passes on; nothing is counted as a failure, though none would be allowed."""
    with Ground.made() as ground:
        nodes, out = Nodes(ground, (1, 1, 1)), ground.folder / "out"
        env = {"RAY_ADDRESS": nodes.address}
        more = ("expert.experts=40", "expert.epochs=200", "expert.keep=all", "scale.actors=2", "scale.max_failures=0")
        words, log = command("experts", out, ON_NODES, *more), ground.folder / "job.log"
        with open(log, "w") as file:
            job = ground.start(words, env={**ground.env, **env}, stdout=file, stderr=subprocess.STDOUT)
        until(lambda: len(list((out / "experts").glob("experts-*.json"))) >= 2 and starts(out) != [])
        node = starts(out)[-1]["node"]
        nodes.notice(nodes.ids.index(str(node)), 300)
        told = time.time()
        assert job.wait(PATIENCE) == 0, log.read_text()[-3000:]
        late = [event for event in starts(out) if event["node"] == node and event["time"] > told + 10]
        assert late == [], late
        assert "is told to stop and gets no further units" in log.read_text()
        assert any(event["node"] != node and event["time"] > told for event in starts(out))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distill", "evaluate", "search", "prepare"])
def test_a_notice_costs_no_failure_and_little_work(name: str) -> None:
    """A node at work is told to stop and goes 15 s later. The run goes on elsewhere, though no failure is allowed."""
    stage, lasting = (
        STAGES.get(name),
        {"evaluate": ("recipe.steps=400", "recipe.seeds=8"), "search": ("search.steps=200",)},
    )
    with Ground.made() as ground:
        del ground.env["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"]
        nodes, out = Nodes(ground, (1, 1, 1)), ground.folder / "out"
        env = {**ground.env, "RAY_ADDRESS": nodes.address}
        for verb in stage.before if stage else ():
            code, said = ground.run(command(verb, out, ("scale=inline",)))
            assert code == 0, said[-3000:]
        own = (*stage.words, *stage.apart) if stage else ("data.limit=null", "per_shard=16")
        more = ("method.steps=1000",) if name == "distill" else lasting.get(name, ())
        words = command(name, out, ON_NODES, *own, *more, "scale.max_failures=0")
        log, at = ground.folder / "job.log", out / "data" if name == "prepare" else out
        with open(log, "w") as file:
            job = ground.start(words, env=env, stdout=file, stderr=subprocess.STDOUT)

        def apart() -> list[dict[str, object]]:
            """Work on another node than the driver's, and not on the head."""
            drivers = {one["node"] for one in starts(at, "stage")}
            return [one for one in starts(at) if one["node"] in nodes.ids[1:] and one["node"] not in drivers]

        until(lambda: bool(apart()) or job.poll() is not None)
        assert job.poll() is None, log.read_text()[-3000:]
        victim = str(apart()[0]["node"])
        nodes.notice(nodes.ids.index(victim), 15)
        told = time.time()
        time.sleep(15)
        nodes.kill(nodes.ids.index(victim))
        assert job.wait(PATIENCE) == 0, log.read_text()[-5000:]
        late = [one for one in starts(at) if one["node"] == victim and float(str(one["time"])) > told + 6]
        assert late == [] or name == "prepare", late  # Ray Data hands its units out itself
        if name == "distill":
            lines = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
            assert lines == list(range(1, 1001))
            assert "a machine is about to be taken away: checkpoint of step" in log.read_text()
        elif name == "prepare":
            assert hashes(out / "data", "*.npy") != {}


PROCESSES = {"evaluate": "ray::_call", "search": "ray::ImplicitFunc", "prepare": "ray::MapWorker"}
"""What Ray calls the processes of a stage."""
LEAVES = {
    "evaluate": "artifact/codec.safetensors",
    "search": "search/trials/*/*/artifact/codec.*",
    "prepare": "data/*.npy",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_that_stands_still_is_ended_and_its_work_done_again(name: str) -> None:
    """Stopped by its process id; the run ends by itself, and what it leaves is that of one process without Ray."""
    with Ground.made() as ground:
        out, calm = ground.folder / "out", ground.folder / "calm"
        before = STAGES[name].before if name in STAGES else ()
        own = STAGES[name].words if name in STAGES else ("data.limit=null", "per_shard=4")
        own += {"evaluate": ("recipe.steps=5000",), "search": ("search.steps=400",)}.get(name, ())
        for verb in before:
            code, said = ground.run(command(verb, out, ("scale=inline",)))
            assert code == 0, said[-3000:]
        if before:
            shutil.copytree(out, calm)
        code, said = ground.run(command(name, calm, ("scale=inline",), *own))
        assert code == 0, said[-3000:]
        log = ground.folder / "job.log"
        words = command(name, out, ("scale=laptop", "scale.cpus=1", "scale.beat=12", "scale.startup=120"), *own)
        with open(log, "w") as file:
            job = ground.start(words, stdout=file, stderr=subprocess.STDOUT)

        def at_work() -> list[int]:
            place = out / "data" if name == "prepare" else out
            known = {one["pid"] for one in starts(place)}
            found = [pid for pid, title in descendants(job.pid) if title.startswith(PROCESSES[name])]
            return [pid for pid in found if pid in known]

        until(lambda: bool(at_work()) or job.poll() is not None)
        assert job.poll() is None, log.read_text()[-3000:]
        os.kill(at_work()[0], signal.SIGSTOP)
        assert job.wait(PATIENCE) == 0, log.read_text()[-3000:]
        assert "is hung: no beat for" in log.read_text(), log.read_text()[-3000:]
        assert left(out, LEAVES[name]) == left(calm, LEAVES[name])
        if name == "evaluate":
            scores = [json.loads((at / "artifact" / "card.json").read_text())["scores"] for at in (out, calm)]
            assert scores[0] == scores[1]


def starts(out: Path, kind: str = "start") -> list[dict[str, object]]:
    """Beginnings of work, as OUT/events.jsonl has them."""
    path = out / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]
