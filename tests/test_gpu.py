"""What runs on a GPU runs on the pretend one: every method from its experts to its scores, and the studies."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.compose import Asked, ask, options
from jobs.distill import distilled
from jobs.evaluate import scored
from jobs.experts import built
from rayd.data.augment import Augment
from rayd.data.transform import Transform
from rayd.evaluate.batches import ImageSet
from rayd.experts.config import ExpertConfig
from rayd.experts.train import train
from rayd.nets.convnet import NetConfig
from rayd.run import assemble
from rayd.schema import to_dict
from rayd.store import Store
from rayd.studies.continual.protocol import ContinualConfig, learn, open_store
from rayd.studies.theory.sweep import TheoryConfig, sweep
from tests.support.pretend import Refusal, pretend_gpu
from tests.support.worlds import tiny

__all__ = ["pretend_gpu"]

SMALL = (
    *("data=generated", "data.count=48", "data.val=8", "data.classes=3", "data.size=16", "net.depth=2", "net.width=4"),
    *("expert.experts=2", "expert.per_shard=2", "expert.epochs=2", "expert.batch=16", "expert.precision=fp32"),
    *("method.steps=2", "method.checkpoint=1", "method.validate=1", "method.select=best_val"),
    *(
        "recipe.steps=4",
        "recipe.epochs=null",
        "recipe.batch=16",
        "recipe.seeds=2",
        "budget={ipc: 2, floats: null}",
        "scale.gpus=1",
    ),
)
MATCHED = {
    "inner_steps": 2,
    "expert_epochs": 1,
    "first": 0,
    "last": 2,
    "batch": 4,
    "skip_above": "null",
    "grow_from": "null",
}
FEATURES = {"batch_real": 8, "frequencies": 32, "pool": 2}
OWN = dict.fromkeys(("dwa", "sre2l"), ("net=convnet_bn", "recipe=sre2l", "method.objective.blocks=2"))


def words(method: str, out: Path) -> tuple[str, ...]:
    """The sentence as it is shipped, at sizes that take seconds."""
    objective = ask("distill", (f"method={method}",)).run.method.objective
    sizes = MATCHED if hasattr(objective, "inner_steps") else FEATURES
    kept = [f"method.objective.{key}={value}" for key, value in sizes.items() if hasattr(objective, key)]
    return (f"method={method}", *OWN.get(method, ()), *SMALL, *kept, f"out={out}")


def interrupted(asked: Asked, store: Store) -> None:
    """The same run, left after its first checkpoint and gone on with."""
    from rayd.run.distill import distill

    for step in distill(asked.run):
        assert step.number == 1
        break
    assert store.list("checkpoints/")
    assert distilled(asked)


LONG = ("dwa", "sre2l")
METHODS = [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in options("method")]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_from_experts_to_scores(method: str, tmp_path: Path, pretend_gpu: torch.device) -> None:
    asked = ask("distill", words(method, tmp_path / "whole"))
    if asked.run.method.reads_experts:
        built(asked)
    assert distilled(asked)
    again = replace(asked, run=replace(asked.run, out=str(tmp_path / "resumed"), buffer=asked.run.experts_at))
    interrupted(again, Store(again.run.out))
    for name in ("codec.safetensors", "card.json"):
        assert (tmp_path / "whole/artifact" / name).read_bytes() == (tmp_path / "resumed/artifact" / name).read_bytes()
    assert scored(asked, asked.run.at("artifact"))
    table = Store(asked.run.at("artifact")).read_json("controls.json")
    assert not table["skipped"], table["skipped"]
    assert all(row["n"] == 2 for row in table["rows"])


ENGINES = [
    (norm, engine, sam) for norm in ("instance", "batch") for engine in ("stacked", "single") for sam in (0, 0.01)
]


@pytest.mark.parametrize(("norm", "engine", "sam"), ENGINES)
def test_experts_are_those_of_the_cpu(norm: str, engine: str, sam: float, pretend_gpu: torch.device) -> None:
    images = tiny(48, channels=3)
    net = NetConfig(depth=2, width=4, norm=norm).build(images.spec)  # type: ignore[arg-type]
    config = ExpertConfig(batch=16, lr=0.05, momentum=0.9, precision="fp32", engine=engine, sam=sam)  # type: ignore[arg-type]
    transform = Transform.fit(images, "normalise")
    here, there = (
        list(train(config, net, transform, images, (1, 2), epochs=2, val=images, device=device))
        for device in ("cpu", pretend_gpu)
    )
    for mine, theirs in zip(here, there, strict=True):
        assert theirs.theta_P.device.type == "cpu", "a snapshot is kept in the host's memory"
        torch.testing.assert_close(mine.theta_P, theirs.theta_P, rtol=1e-4, atol=1e-5)
        assert mine.metrics == pytest.approx(theirs.metrics, rel=1e-3)


def test_continual_learning(tmp_path: Path, pretend_gpu: torch.device) -> None:
    run = ask("distill", words("dm", tmp_path)).run
    kinds = {"random": "random", "herding": "herding", "dm": to_dict(run.method)}
    config = ContinualConfig(tasks=2, orders=1, bytes_per_class=4096, memories=kinds)
    _, done, left = open_store(run, config)
    assert not done and len([learn(run, config, unit) for unit in left]) == 3


def test_theory(pretend_gpu: torch.device) -> None:
    config = TheoryConfig(
        d=(4,), r=(1,), width=(8,), base_d=4, base_r=1, base_width=8, pairs=(2,), steps=3, pool=2, seeds=1
    )
    assert len(list(sweep(config, 0))) == 1


# ---- what a forgotten move would do -----------------------------------------------------------------------------------

FAULTS: dict[str, tuple[str, Any, str, str]] = {
    "augmentation": ("mtt", Augment, "__call__", "draw.to(images_NCHW.device)"),
    "validation": ("dm", ImageSet, "_of_images", "part[index_N].to(transform.device)"),
    "the contrast": ("haba", assemble, "parts", "config.build(inputs, codec).to(inputs.device)"),
    "the psi network": ("ncfm_psi", assemble, "parts", "method.objective.build(inputs).to(inputs.device)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_forgotten_move_is_seen(
    fault: str, tmp_path: Path, pretend_gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, owner, name, move = FAULTS[fault]
    asked = ask("distill", words(method, tmp_path))
    if asked.run.method.reads_experts:
        built(asked)
    monkeypatch.setattr(owner, name, without(owner, name, move))
    with pytest.raises(Refusal, match="same device"):
        distilled(asked)


def without(owner: Any, name: str, move: str) -> Any:
    """The function without that call of `.to`."""
    found = inspect.getattr_static(owner, name)
    source = textwrap.dedent(inspect.getsource(getattr(found, "__func__", found)))
    assert source.count(move) == 1
    made: dict[str, Any] = {}
    exec(source.replace(move, move[: move.rindex(".to(")]), getattr(found, "__func__", found).__globals__, made)
    return made[name]
