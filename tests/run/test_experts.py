from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayd.config import Run
from rayd.data.load import load as load_data
from rayd.errors import Failed, Refused
from rayd.experts.buffer import Buffer
from rayd.experts.train import ExpertStep
from rayd.experts.unfinished import Unfinished
from rayd.run.assemble import buffer_identity
from rayd.run.experts import ExpertPlan, build, build_unit
from rayd.run.progress import Progress
from rayd.store import Store
from tests.support.expert_runs import digits_run, hashes


def build_all(run: Run) -> Progress:
    *_, progress = build(ExpertPlan.open(run))
    return progress


def cost_of(out: Path) -> dict[str, float]:
    return dict(json.loads((out / "timing.json").read_text()))


def identity(run: Run) -> dict[str, Any]:
    plan = ExpertPlan.open(run)
    return buffer_identity(run, load_data(run.data), plan.transform, plan.net)


def test_a_buffer_holds_what_the_recipe_matches_and_says_what_that_saves(tmp_path: Path) -> None:
    run = digits_run(tmp_path, experts=3, per_shard=2)
    assert (
        ExpertPlan.open(run)
        .saving()
        .startswith(
            "3 experts in 2 shards, 4 of 51 snapshots kept, 3 of 50 epochs trained, "
            "7,764 images a shard: 49.25 kB instead of 627.91 kB"
        )
    )
    progress = build_all(run)
    assert (progress.done, progress.experts, progress.skipped) == (2, 3, 0)
    buffer = Buffer(run.experts_at, identity(run))
    assert (buffer.experts, buffer.last_epoch) == (3, 3)
    assert progress.accuracy is not None and progress.accuracy > 0.3


def test_committed_shards_are_skipped_and_a_buffer_grows(tmp_path: Path) -> None:
    build_all(digits_run(tmp_path, experts=2))
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "experts").glob("*.tar")}
    cost = cost_of(tmp_path)
    again = build_all(digits_run(tmp_path, experts=2))
    assert (again.done, again.skipped) == (0, 2) and cost_of(tmp_path) == cost
    more = build_all(digits_run(tmp_path, experts=3))
    assert (more.done, more.skipped) == (1, 2)
    assert cost_of(tmp_path)["experts_s"] > cost["experts_s"] and cost["experts_peak"] > 10 * 2**20
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())
    build_all(digits_run(tmp_path / "whole", experts=3))
    assert hashes(str(tmp_path / "experts")) == hashes(str(tmp_path / "whole" / "experts"))


def test_shards_that_are_too_short_are_replaced_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_all(digits_run(tmp_path, experts=2, last=1))
    with caplog.at_level(logging.WARNING):
        longer = build_all(digits_run(tmp_path, experts=2, last=3))
    assert longer.done == 2
    assert "holds 1 experts to epoch 2, this run asks 1 to epoch 4: trained again and replaced" in caplog.text
    assert Buffer(str(tmp_path / "experts")).last_epoch == 4
    assert build_all(digits_run(tmp_path, experts=2, last=1)).skipped == 2


def test_other_settings_are_refused_with_a_diff(tmp_path: Path) -> None:
    build_all(digits_run(tmp_path, experts=1))
    other = digits_run(tmp_path, experts=1, lr=0.2, seed=1)
    with pytest.raises(Refused) as caught:
        build_all(other)
    assert "expert.lr: the buffer has 0.05, this run asks 0.2" in str(caught.value)
    assert "plan.seed: the buffer has 0, this run asks 1" in str(caught.value)
    Buffer(str(tmp_path / "experts"), identity(digits_run(tmp_path, experts=9, seed=1)))
    with pytest.raises(Refused, match=r"net\.norm"):
        Buffer(str(tmp_path / "experts"), identity(digits_run(tmp_path, norm="batch")))


def test_diverged_units_are_recorded_and_too_many_end_the_run(tmp_path: Path) -> None:
    run = digits_run(tmp_path, experts=2, norm="none", lr=1e30, max_failed=0.4)
    with pytest.raises(Failed, match=r"2 of 2 units diverged, more than expert\.max_failed=0\.4.*lower expert\.lr"):
        build_all(run)
    told = json.loads((tmp_path / "experts" / "experts-00001.failed.json").read_text())
    assert told["expert"] == 1 and told["epoch"] == 1 and told["losses"] == [None]
    with pytest.raises(Failed, match="2 of 2"):
        build_all(run)
    lenient = build_all(digits_run(tmp_path, experts=2, norm="none", lr=1e30, max_failed=1.0))
    assert lenient.failed == 2 and lenient.done == 0


def test_pools_keep_both_ends(tmp_path: Path) -> None:
    build_all(digits_run(tmp_path, experts=1, keep="ends", epochs=5))
    buffer = Buffer(str(tmp_path / "experts"))
    assert buffer.epochs(0) == [0, 5] and buffer.last_epoch == 5


@pytest.mark.parametrize("engine", ["single", "stacked"])
def test_a_lost_unit_goes_on_from_its_last_epoch(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Interrupted in the middle of epoch 3 of both experts, then again: the same bytes, and no epoch is trained twice."""
    settings = {"experts": 2, "per_shard": 2, "momentum": 0.9, "engine": engine}
    build_all(digits_run(tmp_path / "whole", **settings))
    monkeypatch.setattr("rayd.experts.unfinished.EVERY", 0.0)
    trained: list[tuple[int, ...]] = []
    original = ExpertStep.epoch

    def epoch(step: ExpertStep, theta: Any, velocity: Any, seeds: Any, number: int) -> Any:
        if len(trained) == 2 and number == 3:
            trained.append(())
            raise RuntimeError("lost")
        trained.append((*seeds, number))
        return original(step, theta, velocity, seeds, number)

    monkeypatch.setattr(ExpertStep, "epoch", epoch)
    with pytest.raises(RuntimeError, match="lost"):
        build_all(digits_run(tmp_path / "torn", **settings))
    unfinished = tmp_path / "torn" / "experts" / "unfinished"
    assert [path.name for path in sorted(unfinished.iterdir())][-1] == "experts-00000-p0-e0002.npz"
    build_all(digits_run(tmp_path / "torn", **settings))
    assert len(set(trained)) == len(trained) == 1 + 3 * (2 if engine == "single" else 1)
    assert hashes(str(tmp_path / "torn" / "experts")) == hashes(str(tmp_path / "whole" / "experts"))


def test_unfinished_epochs_that_do_not_belong_or_are_damaged_are_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayd.experts.unfinished.EVERY", 0.0)
    monkeypatch.setattr(Unfinished, "clear", lambda self: None)
    store, run = Store(tmp_path / "experts"), digits_run(tmp_path, experts=1)
    plan = ExpertPlan.open(run)
    plan.writer.claim()
    build_unit(plan, plan.units[0])
    blocks = plan.writer.unfinished("experts-00000", (0,)).read(0)
    assert [block.epochs for block in blocks] == [[0], [1], [2], [3]]
    assert plan.writer.unfinished("experts-00000", (0, 1)).read(0) == []
    name = "unfinished/experts-00000-p0-e0001.npz"
    data = bytearray(store.read(name))
    data[len(data) // 2] ^= 1
    store.write(name, bytes(data))
    assert [block.epochs for block in plan.writer.unfinished("experts-00000", (0,)).read(0)] == [[0]]
    plan.writer.finish()
    assert store.list("unfinished/") == []


def test_a_method_with_a_teacher_keeps_the_last_epoch_too(tmp_path: Path) -> None:
    run = digits_run(tmp_path, experts=1, epochs=6)
    soft = replace(run, method=replace(run.method, codec=replace(run.method.codec, labels="soft")))
    build_all(soft)
    buffer = Buffer(soft.experts_at)
    assert buffer.epochs(0) == [0, 1, 2, 3, 6] and buffer.last_epoch == 6
    assert build_all(run).skipped == 1, "rows that a method does not need do no harm"
