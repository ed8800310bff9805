"""Memory that runs out in a distillation or a score: once more with half of it, then a message that names the knobs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rayd.data.transform import Transform
from rayd.distill.unroll import Inner
from rayd.errors import OutOfMemory
from rayd.evaluate import score as scoring
from rayd.evaluate.recipe import RecipeConfig
from rayd.evaluate.score import evaluate
from rayd.nets.convnet import NetConfig
from rayd.run.distill import HALVED, distill
from rayd.run.experts import ExpertPlan, build
from rayd.store import Store
from tests.support.runs import digits_run
from tests.support.worlds import tiny


def short_below(micro: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second derivative fits only where its images pass in at least so many parts."""
    real = Inner.products

    def products(self: Inner, *tensors: Any) -> Any:
        if self.micro < micro:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, *tensors)

    monkeypatch.setattr(Inner, "products", products)


def run(out: Path) -> Any:
    """A few steps of trajectory matching on digits, its experts there."""
    short = digits_run(out, experts=2, last=1)
    list(build(ExpertPlan.open(short)))
    return replace(short, method=replace(short.method, steps=3, checkpoint=1, compiled=False))


def test_a_distillation_goes_on_with_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = run(tmp_path)
    short_below(2, monkeypatch)
    steps = [step.number for step in distill(asked)]
    assert steps[-1] == asked.method.steps
    card = json.loads((tmp_path / "artifact" / "card.json").read_text())
    assert "out of memory" in card["claim"]["halved"]
    assert not Store(asked.out).exists(HALVED)


def test_a_distillation_that_runs_out_again_names_its_knobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = run(tmp_path)
    short_below(4, monkeypatch)
    with pytest.raises(OutOfMemory, match=r"method\.objective\.micro=1, method\.objective\.batch="):
        list(distill(asked))
    assert Store(asked.out).exists(HALVED), "the next submission asks for half at once"


def scores(limit: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Of four networks, of which so many fit at once."""
    real = scoring._train

    def train(recipe: Any, net: Any, source: Any, seeds: list[int], *rest: Any) -> Any:
        if len(seeds) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(recipe, net, source, seeds, *rest)

    monkeypatch.setattr(scoring, "_train", train)
    images = tiny(24)
    transform = Transform.fit(images, "normalise")
    recipe = RecipeConfig(steps=4, batch=8, seeds=4)
    net = NetConfig(depth=1, width=4).build(images.spec)
    found = evaluate(recipe, net, images, images, transform, (1, 2, 3, 4), together=True, compile=False)
    return [one.accuracy for one in found]


def test_networks_are_trained_half_as_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as whole:
        expected = scores(4, whole)
    assert scores(2, monkeypatch) == pytest.approx(expected, abs=0.05)


def test_a_score_that_runs_out_again_names_its_knobs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutOfMemory, match=r"recipe\.batch"):
        scores(1, monkeypatch)
