"""The mutual-information term: its bound against closed forms, and what it does to images and projections."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rayd.distill.loop import Distillation, OptimiserConfig
from rayd.errors import Refused
from rayd.methods.dm import Distribution
from rayd.methods.mim4dd import Mim4dd, bound
from rayd.methods.ncfm import Ncfm
from rayd.seeds import generator
from tests.support.worlds import TinyPixels, TinyWorld


def gaussian_pair(n: int, rho: float) -> Tensor:
    """Scores log p(y|x) / p(y) of n draws of a Gaussian pair, every x against every y."""
    rng = generator(0, "pair")
    x_N = torch.randn(n, generator=rng, dtype=torch.float64)
    y_N = rho * x_N + math.sqrt(1 - rho**2) * torch.randn(n, generator=rng, dtype=torch.float64)
    given = (y_N[None] - rho * x_N[:, None]).square() / (1 - rho**2)
    return 0.5 * (y_N[None].square() - given - math.log(1 - rho**2))


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_bound_on_a_gaussian_pair_is_its_information(rho: float) -> None:
    n = 2000
    found = bound(gaussian_pair(n, rho), torch.eye(n, dtype=torch.bool))
    assert abs(float(found) + 0.5 * math.log(1 - rho**2)) < 0.05


def test_bound_is_biased_to_at_most_the_log_of_the_number() -> None:
    n, rho = 32, 0.9999
    information = -0.5 * math.log(1 - rho**2)
    found = float(bound(gaussian_pair(n, rho), torch.eye(n, dtype=torch.bool)))
    assert information > math.log(n) > found > 0.5 * math.log(n)


def test_bound_of_separated_classes_is_the_log_of_their_number() -> None:
    classes_R, classes_S = torch.arange(5).repeat(8), torch.arange(5).repeat(3)
    positive_RS = classes_R[:, None] == classes_S[None]
    assert float(bound(100.0 * positive_RS, positive_RS)) == pytest.approx(math.log(5), abs=1e-5)
    assert float(bound(torch.zeros(40, 15), positive_RS)) == pytest.approx(0.0, abs=1e-5)


def trace(inputs: TinyWorld, term: Mim4dd.Config, steps: int, lr: float) -> list[float]:
    """Information under DM with the term, at every step."""
    codec = TinyPixels(inputs)
    objective = Distribution.Config(batch_real=16).build(inputs)
    rates = OptimiserConfig(lr=lr)
    work = Distillation(codec, objective, [term.build(inputs, codec)], steps=steps, optimiser=rates, inputs=inputs)
    return [step.metrics["information"] for step in work.run()]


def test_the_term_raises_the_information_above_the_plain_objectives() -> None:
    inputs = TinyWorld()
    plain = trace(inputs, Mim4dd.Config(weight=1e-9), 15, 0.05)
    told = trace(inputs, Mim4dd.Config(weight=20.0), 15, 0.05)
    assert told[-1] > plain[-1] and told[-1] > told[0]
    assert told[-1] <= math.log(inputs.classes)


def test_the_weight_follows_from_gradients_under_compilation_too() -> None:
    weights = []
    for fast in (False, True):
        inputs = TinyWorld(compiled=fast)
        codec = TinyPixels(inputs)
        objective, term = Distribution.Config(batch_real=16).build(inputs), Mim4dd.Config().build(inputs, codec)
        list(Distillation(codec, objective, [term], steps=1, optimiser=OptimiserConfig(lr=0.1), inputs=inputs).run())
        weights.append(float(term.weight))
    assert weights[1] == pytest.approx(weights[0], rel=1e-3) and weights[0] > 0


def test_a_learned_projection_tightens_the_bound_on_frozen_images() -> None:
    inputs = TinyWorld()
    codec = TinyPixels(inputs, start=inputs.take)
    objective = Distribution.Config(batch_real=16).build(inputs)
    term = Mim4dd.Config(weight=1.0, width=8).build(inputs, codec)
    (item,) = objective.plan(0)
    data = objective.fetch(item)
    (player,) = term.players()
    optimiser = torch.optim.Adam(list(player.params), lr=0.01)
    seen = []
    for _ in range(8):
        match = term(codec, item, objective(codec, item, data))
        seen.append(float(match.metrics["information"]))
        for p, g in zip(player.params, torch.autograd.grad(match.value, player.params), strict=True):
            p.grad = g
        optimiser.step()
    assert seen[-1] > seen[0]


def test_a_contrast_needs_classes() -> None:
    inputs = TinyWorld()
    codec = TinyPixels(inputs)
    config = Ncfm.Config(batch_real=8, pool=0, frequencies=32, classes_per_item=1)
    assert not config.multiclass and Ncfm.Config().multiclass
    objective, term = config.build(inputs), Mim4dd.Config(weight=1.0).build(inputs, codec)
    item = objective.plan(0)[0]
    with pytest.raises(Refused, match="classes_per_item=0"):
        term(codec, item, objective(codec, item, objective.fetch(item)))


@pytest.mark.parametrize("bad", [{"weight": -1.0}, {"temperature": 0.0}, {"batch_real": 0}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(Refused, match="mim4dd"):
        Mim4dd.Config(**bad)
