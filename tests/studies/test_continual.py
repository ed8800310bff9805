"""Memories of equal bytes over a sequence of tasks: orders, what is kept, what is measured, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayd.config import Run
from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.errors import Refused
from rayd.evaluate.recipe import RecipeConfig
from rayd.nets.convnet import NetConfig
from rayd.schema import parse
from rayd.studies.continual.memory import memory_of, task_images
from rayd.studies.continual.page import html, text
from rayd.studies.continual.protocol import (
    ContinualConfig,
    Outcome,
    class_orders,
    forgetting,
    keep,
    learn,
    open_store,
    summary,
    units,
)
from tests.support.runs import small_run
from tests.support.worlds import tiny

DM: dict[str, Any] = {
    "codec": {"name": "pixel", "storage": "int8"}, "objective": {"name": "distribution", "batch_real": 8},
    "steps": 2, "compiled": False, "optimiser": {"lr": 0.05},
}  # fmt: skip
RECIPE = RecipeConfig(steps=5, seeds=1, batch=16)


def run(out: Path) -> Run:
    data, recipe = {"name": "digits", "limit": 200, "val": 50}, {"steps": 12, "seeds": 1}
    return small_run(data=data, net={"width": 4}, recipe=recipe, out=str(out))


def config(**more: Any) -> ContinualConfig:
    plain = {"tasks": 2, "orders": 2, "bytes_per_class": 640, "memories": {"random": "random", "dm": DM}}
    return parse(ContinualConfig, {**plain, **more})


def test_tasks_partition_the_classes_by_plan() -> None:
    orders = class_orders(config(tasks=3), 10, 0)
    assert len(orders) == 2 and orders[0] != orders[1] and orders == class_orders(config(tasks=3), 10, 0)
    assert [len(task) for task in orders[0]] == [3, 4, 3]
    assert sorted(c for task in orders[0] for c in task) == list(range(10))
    own = config(class_orders=[[2, 1, 0]], tasks=3)
    assert class_orders(own, 3, 0) == [[(2,), (1,), (0,)]]
    assert [u.order for u in units(own)] == [0, 0]


def test_a_task_numbers_its_classes_from_zero() -> None:
    images = tiny(60, classes=3)
    own = task_images(images, (2, 0))
    assert own.classes == ("class 2", "class 0") and own.spec.classes == 2
    assert torch.equal(own.pixels_NCHW[own.labels_N == 0], images.pixels_NCHW[images.labels_N == 2])


@pytest.mark.parametrize("kind", ["random", "herding", "dm"])
def test_a_memory_holds_no_more_than_its_bytes(kind: str) -> None:
    images, room = tiny(60, classes=3), 400
    what = config().memory("dm") if kind == "dm" else kind
    kept = memory_of(
        what, task_images(images, (2, 0)), (2, 0), images.spec, room, net=NetConfig(depth=1, width=4),
        transform=Transform.fit(images, "normalise"), recipe=RECIPE, seed=0,
    )  # fmt: skip
    assert 0.7 * 2 * room < kept.bytes <= 2 * room
    assert set(kept.classes_N.tolist()) == {0, 2}
    assert torch.equal(kept.targets_NK.argmax(1), kept.classes_N) and kept.targets_NK.shape[1] == 3
    if kind != "dm":
        assert len(kept.classes_N) == 2 * (room // 64)


def test_forgetting_is_what_was_once_known() -> None:
    assert forgetting([(0.9,), (0.5, 0.8), (0.6, 0.7, 0.9)]) == pytest.approx((0.3 + 0.1) / 2)
    assert forgetting([(0.9,)]) == 0.0


def test_outcomes_are_kept_and_a_second_command_continues(tmp_path: Path) -> None:
    asked = config(orders=1)
    store, done, left = open_store(run(tmp_path), asked)
    assert done == [] and len(left) == 2
    outcome = learn(run(tmp_path), asked, left[0])
    assert [len(row) for row in outcome.accuracy] == [1, 2]
    assert outcome.bytes == (3200, 6400) and outcome.images == (50, 100)
    assert learn(run(tmp_path), asked, left[0]) == outcome
    keep(store, asked, outcome)
    store, done, left = open_store(run(tmp_path), config(orders=1, memories={"random": "random", "herd": "herding"}))
    assert done == [outcome] and [unit.memory for unit in left] == ["herd"]
    with pytest.raises(Refused, match="another continual run"):
        open_store(run(tmp_path), config(tasks=5))


def test_the_winner_is_said_with_its_interval() -> None:
    def outcome(name: str, order: int, last: float) -> Outcome:
        return Outcome(name, order, ((0,), (1,)), ((0.9,), (0.5, last)), (0.9, last), 0.4, (10, 20), (1, 2))

    asked = config(memories={"random": "random", "herd": "herding"})
    clear = [outcome("random", i, 0.5 + 0.01 * i) for i in range(3)] + [
        outcome("herd", i, 0.6 + 0.01 * i) for i in range(3)
    ]
    comparison = summary(asked, clear)
    assert comparison["verdict"].startswith("herd wins: +10.0 points over random")
    spread = comparison["rows"]["herd"]["forgetting"]
    assert (spread["mean"], spread["std"], spread["n"]) == (pytest.approx(0.4), pytest.approx(0, abs=1e-9), 3)
    assert "herd" in text(comparison) and "<svg" in html(comparison)
    hostile = {**comparison, "rows": {"<script>$": comparison["rows"]["herd"]}, "verdict": "<script>"}
    assert "<script>" not in html(hostile)
    close = [outcome("random", i, 0.5) for i in range(3)] + [outcome("herd", i, 0.4 + 0.1 * i) for i in range(3)]
    assert "not beyond chance" in summary(asked, close)["verdict"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bytes_per_class": 63}, "at least 64, one 8-bit image"),
        ({"bytes_per_class": 100, "memories": {"dm": {**DM, "codec": {"name": "pixel"}}}}, "budget=500 bytes"),
        ({"class_orders": [[0, 1, 2, 3, 4, 5, 6, 7, 8, 8]]}, "every class from 0 to 9 once"),
        ({"tasks": 11}, "1 to 10"),
        ({"memories": {"x": "reservoir"}}, "random | herding"),
        ({"memories": {"x": {**DM, "objective": {"name": "mtt"}}}}, "without experts"),
        ({"memories": {"x": {**DM, "codec": {"name": "pixle"}}}}, "did you mean pixel"),
        ({"memories": {}}, "at least one"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as refusal:
        open_store(run(tmp_path), config(**wrong))
    assert message in str(refusal.value)


def test_specs_of_tasks_are_their_own() -> None:
    assert task_images(tiny(), (1,)).spec == Spec((1, 8, 8), 1)
