"""Images that are read in blocks from their files against images that lie on the device: the same bytes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from rayd.distill import classwise
from rayd.distill.budget import from_bytes
from rayd.distill.contract import Item
from rayd.run.distill import distill
from rayd.run.experts import ExpertPlan, build
from tests.support.hashes import hashes
from tests.support.runs import digits_run, small_run

OBJECTIVES: dict[str, dict[str, Any]] = {
    "mtt": {"name": "mtt", "expert_epochs": 1, "last": 1, "inner_steps": 2, "batch": 4},
    "dm": {"name": "distribution", "batch_real": 8},
    "dc": {"name": "gradient", "batch_real": 8, "outer": 2, "inner": 1},
    "ncfm": {"name": "ncfm", "batch_real": 8, "pool": 0, "frequencies": 8},
}


def experts(out: Path, images: str) -> dict[str, str]:
    run = digits_run(out, changes={"scale": {"images": images}}, experts=2, epochs=3)
    list(build(ExpertPlan.open(run)))
    return {name: digest for name, digest in hashes(out / "experts").items() if name.endswith(".tar")}


def test_experts_are_the_same_to_the_byte(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        streamed = experts(tmp_path / "streamed", "streamed")
    assert "images  streamed" in caplog.text and len(streamed) == 2
    assert streamed == experts(tmp_path / "resident", "resident") == experts(tmp_path / "auto", "auto")


@pytest.fixture(scope="module")
def buffer(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = small_run(out=str(tmp_path_factory.mktemp("buffer")), **EXPERTS)
    list(build(ExpertPlan.open(run)))
    return run.experts_at


EXPERTS: dict[str, Any] = {
    "expert": {"experts": 1, "per_shard": 1, "epochs": 2, "compiled": False, "precision": "fp32", "batch": 16},
    "method": {"objective": OBJECTIVES["mtt"], "compiled": False, "steps": 3},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_leaves_the_same_set(name: str, tmp_path: Path, buffer: str) -> None:
    left = []
    for images in ("streamed", "resident"):
        place = {"out": str(tmp_path / images), "buffer": buffer, "scale": {"images": images}}
        run = small_run(**{**EXPERTS, "method": {**EXPERTS["method"], "objective": OBJECTIVES[name]}}, **place)
        list(distill(run))
        left.append((tmp_path / images / "artifact" / "codec.safetensors").read_bytes())
    assert left[0] == left[1]


def test_classes_of_an_item_are_as_many_as_a_block_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An item has no more real images than ITEM bytes, whatever a step has; the set is that of one item but for rounding."""
    sizes: list[int] = []
    fetch = classwise.Classwise.fetch

    def watched(self: classwise.Classwise, item: Item) -> classwise.Batch:
        batch = fetch(self, item)
        sizes.append(len(batch.real_GnCHW))
        return batch

    monkeypatch.setattr(classwise.Classwise, "fetch", watched)
    left = []
    for room in (classwise.ITEM, 4 * 8 * 64):  # of one class: eight images of 64 numbers
        monkeypatch.setattr(classwise, "ITEM", room)
        run = small_run(
            method={"objective": OBJECTIVES["dm"], "compiled": False, "steps": 3}, out=str(tmp_path / str(room))
        )
        list(distill(run))
        left.append(from_bytes((tmp_path / str(room) / "artifact" / "codec.safetensors").read_bytes(), "codec"))
    assert sizes == [3] * 3 + [1] * 9
    for name, tensor in left[0].items():
        torch.testing.assert_close(left[1][name], tensor, rtol=1e-4, atol=1e-5)
