"""Jobs at one folder at the same time: evaluations merge, a second distillation is refused, drivers share a buffer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rayd
from rayd.experts.buffer import verify
from tests.support.hashes import hashes
from tests.support.kills import Ended, Forks

SMALL = (
    *("data=digits", "net=convnet_digits", "net.depth=1", "net.width=2", "method=mtt", "budget.ipc=1", "scale=inline"),
    *("expert=quick", "expert.experts=6", "expert.epochs=3", "expert.per_shard=1", "method.steps=30"),
    *("method.compiled=false", "method.objective.inner_steps=2", "method.objective.batch=10", "method.checkpoint=1"),
    *("method.objective.expert_epochs=1", "method.objective.last=2", "recipe.steps=5", "recipe.seeds=2"),
)
ROUNDS = 10


@pytest.fixture(scope="module")
def alone(forked: tuple[Forks, Path]) -> Path:
    """A run that nothing met."""
    process, folder = forked
    (ended,) = process.together([("pipeline", words(folder / "alone", "stages=[experts,distill]"))])
    assert ended.code == 0, ended.said
    return folder / "alone"


def words(out: Path, *more: str) -> list[str]:
    return [*SMALL, *more, f"out={out}"]


def done(ended: list[Ended]) -> list[Ended]:
    assert all(one.code in (0, 2) for one in ended), "\n".join(one.said for one in ended)
    return [one for one in ended if one.code == 0]


def drivers_of_one_buffer(process: Forks, folder: Path, alone: Path, name: str) -> None:
    """Both end well; the shards are those of one driver alone."""
    out = folder / name
    assert len(done(process.together([("experts", words(out))] * 2))) == 2
    assert verify(str(out / "experts")) == []
    assert hashes(out / "experts") == hashes(alone / "experts")


def distillations_into_one_folder(process: Forks, folder: Path, alone: Path, name: str) -> None:
    """One of them writes; the other is refused, or finds it done."""
    out, buffer = folder / name, f"buffer={alone / 'experts'}"
    ended = process.together([("distill", words(out, buffer))] * 2)
    for one in ended:
        if one not in done(ended):
            assert "is being written by" in one.said and "since 20" in one.said, one.said
    assert done(ended), "of two that come at once, one works"
    assert hashes(out / "artifact", "codec.safetensors") == hashes(alone / "artifact", "codec.safetensors")
    assert not list((out / "checkpoints").glob("step-*"))


def evaluations_of_one_artifact(process: Forks, folder: Path, alone: Path, name: str) -> None:
    """Three recipes, one of them twice: every score is there, and the test set was read four times."""
    out, buffer = folder / name, f"buffer={alone / 'experts'}"
    assert process.together([("distill", words(out, buffer))])[0].code == 0
    asked = [
        (*more, buffer)
        for more in (
            ("controls=[random@raw]",),
            ("controls=[start]",),
            ("controls=false", "recipe.name=b", "recipe.lr=0.02"),
            ("controls=[random@floats]", "recipe.name=c", "recipe.lr=0.03"),
        )
    ]
    assert len(done(process.together([("evaluate", words(out, *more)) for more in asked]))) == 4
    artifact = rayd.load(out / "artifact")
    names = [(row["recipe"], row["set"]) for row in artifact.card["scores"].values()]
    quick = {"distilled", "distilled-8bit", "random@raw", "start"}
    assert {name for recipe, name in names if recipe == "quick"} == quick
    assert {name for recipe, name in names if recipe == "c"} >= {"distilled", "random@floats"}
    assert {name for recipe, name in names if recipe == "b"} >= {"distilled", "distilled-8bit"}
    assert artifact.card["reads"] == 4
    assert (
        json.loads((out / "artifact" / "card.json").read_text())["claim"]["verdict"]
        == artifact.card["claim"]["verdict"]
    )
    assert not list((out / "artifact").glob("score-*")) and not list((out / "artifact").glob("*.tmp"))


ALL = [drivers_of_one_buffer, distillations_into_one_folder, evaluations_of_one_artifact]


@pytest.mark.parametrize("meet", ALL)
def test_once(forked: tuple[Forks, Path], alone: Path, meet) -> None:
    meet(*forked, alone, f"once-{meet.__name__}")


@pytest.mark.slow
@pytest.mark.parametrize("meet", ALL)
def test_ten_rounds(forked: tuple[Forks, Path], alone: Path, meet) -> None:
    for number in range(ROUNDS):
        meet(*forked, alone, f"{meet.__name__}-{number}")
