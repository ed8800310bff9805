"""Nodes that go away: in every stage one of three is killed at a random moment, and what comes out is the same.

A round submits the command, kills, and where the job failed submits it once more. One round is in `make test`; `make chaos`
runs ten.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fleet.grounds import PATIENCE, Ground, Nodes, digests, end, until

pytestmark = pytest.mark.ray

ROUNDS = int(os.environ.get("RAYD_ROUNDS", "10"))
TINY = (
    "data=digits", "data.limit=256", "net.depth=2", "net.width=8", "expert=quick", "expert.experts=8", "expert.epochs=6",
    "method=mtt", "method.objective.last=2", "method.objective.inner_steps=4", "method.objective.batch=20",
    "method.objective.items=2", "method.compiled=false", "method.steps=300", "method.checkpoint=10", "budget.ipc=2",
    "recipe.steps=60", "recipe.seeds=2", "scale.threads=1",
)  # fmt: skip
ON_NODES = ("scale=cluster", "scale.cpus=1", "scale.gpus=0", "scale.timeout=120")
SEARCH = ("search.trials=3", "search.rungs=[20,60]", "search.space={method.optimiser.lr: [1, 10, 100]}")


@dataclass(frozen=True)
class Stage:
    """What is run, and from which file on it may be disturbed."""

    name: str
    words: tuple[str, ...]
    begun: str
    before: tuple[str, ...]
    """Verbs that must have been run."""


STAGES = {
    "experts": Stage("experts", (), "experts/experts-*.json", ()),
    "distill": Stage("distill", ("scale.workers=2",), "checkpoints/step-*.json", ("experts",)),
    "evaluate": Stage("evaluate", ("controls=false",), "artifact/card.json", ("experts", "distill")),
}


def command(verb: str, out: Path, scale: tuple[str, ...], *more: str) -> list[str]:
    return ["python", "-m", f"jobs.{verb}", *TINY, *scale, f"out={out}", *more]


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[Ground]:
    """The same runs in one process without Ray, in its folder `calm`: what every round must come to."""
    with Ground.made() as ground:
        out = ground.folder / "calm"
        for verb, more in (("experts", ()), ("distill", ()), ("evaluate", ("controls=false",))):
            code, said = ground.run(command(verb, out, ("scale=inline",), *more))
            assert code == 0, said[-3000:]
        yield ground


def round_of(stage: Stage, seed: int, undisturbed: Ground) -> str:
    """One round; returns how it went."""
    rng = random.Random(seed)
    with Ground.made(undisturbed.code) as ground:
        nodes, out = Nodes(ground, (1, 1, 1)), ground.folder / "out"
        env = {"RAY_ADDRESS": nodes.address}
        for verb in stage.before:
            code, said = ground.run(command(verb, out, ("scale=inline",)))
            assert code == 0, said[-3000:]
        words = command(stage.name, out, ON_NODES, *stage.words)
        log = ground.folder / "job.log"
        with open(log, "w") as file:
            job = ground.start(words, env={**ground.env, **env}, stdout=file, stderr=subprocess.STDOUT)
        until(lambda: any(out.glob(stage.begun)) or job.poll() is not None)
        time.sleep(rng.uniform(0, 3))
        at_work = job.poll() is None
        nodes.kill(rng.choice((1, 2)))
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
    assert digests(out / "experts", "*.tar") == digests(calm / "experts", "*.tar")
    if stage.name != "experts":
        assert digests(out / "artifact", "codec.safetensors") == digests(calm / "artifact", "codec.safetensors")
    if stage.name == "evaluate":
        scores = [json.loads((where / "artifact" / "card.json").read_text())["scores"] for where in (out, calm)]
        assert scores[0] == scores[1]


def test_a_node_lost_while_experts_are_made(undisturbed: Ground) -> None:
    assert round_of(STAGES["experts"], 0, undisturbed) == "through"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_node_lost_anywhere(undisturbed: Ground, number: int) -> None:
    stage = list(STAGES.values())[number % len(STAGES)]
    assert round_of(stage, 100 + number, undisturbed) in ("through", "submitted again", "too late")


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
