"""Gradient matching: the distance, its derivative, and the episodes of its networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.methods.dc import Gradient, distance, parameter_gradient
from rayd.nets.flat import Flat
from rayd.seeds import generator
from tests.support.matching import QUIET, distillation, random
from tests.support.worlds import TinyPixels, TinyWorld

FLAT = Flat(("weight", "bias", "out"), ((5, 3), (5,), (1, 5)))


def student(theta_P: Tensor, inputs_Nd: Tensor, targets_N: Tensor) -> Tensor:
    """A two-layer network on vectors with a squared loss: no images, no classes."""
    views = FLAT.split(theta_P)
    hidden = torch.relu(F.linear(inputs_Nd, views["weight"], views["bias"]))
    return (F.linear(hidden, views["out"])[:, 0] - targets_N).square().mean()


@pytest.mark.parametrize("kind", ["rows", "squared", "cosine"])
def test_a_gradient_is_at_no_distance_from_itself(kind: str) -> None:
    g_P = random(FLAT.size)
    assert abs(float(distance(g_P, g_P, FLAT, kind))) < 2e-5
    assert float(distance(g_P, random(FLAT.size, seed=1), FLAT, kind)) > 0.1


def test_distance_ignores_the_length_of_rows_and_all_vectors() -> None:
    g_P, h_P = random(FLAT.size), random(FLAT.size, seed=1)
    views = FLAT.split(h_P)
    longer = {"weight": views["weight"] * torch.arange(1.0, 6)[:, None], "bias": 9 * views["bias"], "out": views["out"]}
    scaled = FLAT.join(longer)
    torch.testing.assert_close(distance(g_P, scaled, FLAT), distance(g_P, h_P, FLAT), rtol=1e-4, atol=1e-4)


def test_gradient_matching_of_vectors() -> None:
    """The core takes inputs of any kind: descending it on vectors and real targets brings the gradients together."""
    theta_P, x, y = random(FLAT.size), random(40, 3, seed=1), random(40, seed=2)
    real_P = parameter_gradient(student, theta_P, x, y)
    syn, targets = random(4, 3, seed=3).requires_grad_(), random(4, seed=4).requires_grad_()
    optimiser = torch.optim.Adam([syn, targets], lr=0.05)
    seen = []
    for _ in range(40):
        value = distance(real_P, parameter_gradient(student, theta_P, syn, targets), FLAT)
        seen.append(float(value.detach()))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    assert seen[-1] < 0.5 * seen[0]


def test_the_known_derivative_is_autograds() -> None:
    inputs = TinyWorld()
    codec = TinyPixels(inputs)
    objective = Gradient.Config(batch_real=12, augment=QUIET).build(inputs)
    (item,) = objective.plan(0)
    data = objective.fetch(item)
    match = objective(codec, item, data)
    (found,) = torch.autograd.grad(match.value, [codec.pixels])
    theta_P = objective.theta_P.detach().requires_grad_()

    def gradient(images: Tensor, targets: Tensor) -> Tensor:
        loss = -(targets * inputs.net(theta_P, images).log_softmax(1)).sum(1).mean()
        return torch.autograd.grad(loss, theta_P, create_graph=True)[0]

    total = torch.zeros(())
    for c in range(inputs.classes):
        images, targets = codec.decode(codec.of_class(c))
        real_P = gradient(data.real_GnCHW[c], data.targets_GnK[c]).detach()
        total = total + distance(real_P, gradient(images, targets), inputs.net.flat)
    torch.testing.assert_close(match.value, total)
    torch.testing.assert_close(found, torch.autograd.grad(total, [codec.pixels])[0], rtol=1e-3, atol=1e-5)


def test_an_episode_trains_its_network_and_then_starts_another() -> None:
    work = distillation(Gradient.Config(batch_real=12, outer=3, inner=2, lr_net=0.1), steps=3)
    objective = work.objective
    assert isinstance(objective, Gradient)
    codec, inputs = work.codec, work.inputs

    def loss() -> float:
        images, targets = codec.decode(torch.arange(len(codec)))
        return float(F.cross_entropy(inputs.net(objective.theta_P, images), targets))

    first, steps = objective.theta_P.clone(), work.run()
    untrained = loss()
    next(steps)
    assert not torch.equal(objective.theta_P, first) and loss() < untrained
    list(steps)
    torch.testing.assert_close(objective.theta_P, inputs.net.init(generator(0, "net", 1)))
