"""The run around the loop: teachers, validation, selection, checkpoints, resume, identity."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import rayd
from rayd.run.assemble import _teacher
from rayd.run.distill import distill
from rayd.run.recorder import VALIDATION_IMAGES
from tests.support.fakes import DATA, a_run


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RAYD_CACHE", str(tmp_path_factory.getbasetemp() / "distill-cache"))


def method(**keys):
    quick = {"steps": 6, "checkpoint": 2, "compiled": False}
    return {"codec": {"name": "pixel"}, "objective": {"name": "distribution", "batch_real": 8}, **quick, **keys}


def run_at(folder, **keys):
    """Distribution matching on generated images, six steps of some milliseconds."""
    data = {**DATA, "val": 0.4}
    return a_run(method(**keys), recipe={"steps": 8}, out=str(folder), data=data)


def pixels(folder):
    return rayd.load(folder / "artifact").stored["pixels"].tensor


def test_the_teacher_is_every_expert_that_is_right():
    """Three experts, whose logits are their parameters: two are right on class 0, one on class 1, none on class 2."""
    rows = torch.tensor([[3.0, 0.0, 1.0], [5.0, 2.0, 0.0], [0.0, 7.0, 1.0]])
    inputs = SimpleNamespace(
        experts=3,
        last_epoch=9,
        spec=SimpleNamespace(classes=3),
        theta=lambda expert, epoch: rows[expert] if epoch == 9 else None,
        net=lambda theta, images: theta.expand(len(images), 3),
    )
    logits = _teacher(inputs)(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 2]))
    assert torch.equal(logits[0], torch.tensor([4.0, 1.0, 0.5])) and torch.equal(logits[1], rows[2])
    assert torch.allclose(logits[2], rows.mean(0))


def test_the_best_validation_is_kept(tmp_path, monkeypatch):
    """Validated at steps 2, 4 and 6 as 0.3, 0.9 and 0.5: the artifact is the set of step 4, resumed in between or not."""
    seen = []

    def validated(assembled, codec):
        seen.append(codec.pixels.detach().clone())
        return {1: 0.3, 2: 0.9, 3: 0.5}[len(seen)]

    monkeypatch.setattr("rayd.run.recorder.validate", validated)
    list(distill(run_at(tmp_path / "a", validate=2, select="best_val")))
    assert torch.equal(pixels(tmp_path / "a"), seen[1]) and not torch.equal(seen[1], seen[2])
    assert rayd.load(tmp_path / "a" / "artifact").card["claim"]["best_val"] == pytest.approx(0.9)
    first = [image.clone() for image in seen]
    seen.clear()
    torn = distill(run_at(tmp_path / "b", validate=2, select="best_val"))
    assert [next(torn).number for _ in range(5)][-1] == 5
    torn.close()
    assert [step.number for step in distill(run_at(tmp_path / "b", validate=2, select="best_val"))] == [5, 6]
    assert torch.equal(pixels(tmp_path / "b"), first[1])


def test_a_validation_sees_every_class(tmp_path, monkeypatch):
    samples = []
    whole = rayd.run.recorder.evaluate

    def watched(recipe, net, source, test, *rest, **keys):
        samples.append((recipe.length(len(source), len(source)).steps, torch.bincount(test.labels_N).tolist()))
        return whole(recipe, net, source, test, *rest, **keys)

    monkeypatch.setattr("rayd.run.recorder.evaluate", watched)
    monkeypatch.setattr("rayd.run.recorder.VALIDATION_IMAGES", 6)
    steps = list(distill(run_at(tmp_path, validate=6)))
    assert samples == [(2, [2, 2, 2])] and VALIDATION_IMAGES == 1000
    assert rayd.load(tmp_path / "artifact").card["claim"]["best_val"] >= 0 and len(steps) == 6
