"""Distribution matching against its closed form; how real images are drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rayd.methods.dm import Distribution
from tests.support.matching import QUIET
from tests.support.worlds import TinyPixels, TinyWorld


class LinearNet:
    """Features W x: what DM's gradient has a closed form for."""

    norm = "none"

    def __init__(self, inputs: int, width: int) -> None:
        self.shape, self.size = (width, inputs), width * inputs

    def init(self, rng: torch.Generator) -> Tensor:
        return torch.randn(self.size, generator=rng)

    def features(self, theta_P: Tensor, images: Tensor) -> list[Tensor]:
        return [images.flatten(1) @ theta_P.view(self.shape).T]


def test_gradient_of_dm_in_closed_form_for_a_linear_net() -> None:
    inputs = TinyWorld()
    net: Any = LinearNet(inputs.spec.floats, 7)
    inputs.net = net
    codec = TinyPixels(inputs)
    objective = Distribution.Config(batch_real=12, augment=QUIET).build(inputs)
    (item,) = objective.plan(0)
    data = objective.fetch(item)
    (found,) = torch.autograd.grad(objective(codec, item, data).value, [codec.pixels])
    weight_FD = data.source.theta_P.view(7, -1)
    gap_GD = codec.pixels.detach().unflatten(0, (4, 2)).mean(1).flatten(1) - data.real_GnCHW.mean(1).flatten(1)
    exact_GD = 2 / 2 * gap_GD @ weight_FD.T @ weight_FD
    torch.testing.assert_close(found.flatten(1), exact_GD.repeat_interleave(2, 0), rtol=1e-4, atol=1e-4)


def test_siamese_augmentation_keeps_equal_sets_equal() -> None:
    inputs = TinyWorld(per_class=6)
    codec = TinyPixels(inputs, ipc=6, start=inputs.take)
    for step in range(6):
        objective = Distribution.Config(batch_real=6).build(inputs)
        (item,) = objective.plan(step)
        assert float(objective(codec, item, objective.fetch(item)).value) < 1e-8


def test_real_images_are_drawn_from_the_whole_class() -> None:
    objective = Distribution.Config(batch_real=5).build(TinyWorld())
    rows = torch.stack([objective.rows(step, 2) for step in range(40)])
    assert set(rows.flatten().tolist()) == set(range(48, 72))
    assert all(len(set(row.tolist())) == 5 for row in rows)


def test_a_small_class_is_repeated() -> None:
    inputs = TinyWorld(per_class=4)
    inputs.labels_N = torch.tensor([0] * 1 + [1] * 7 + [2] * 4 + [3] * 4)
    objective = Distribution.Config(batch_real=6).build(inputs)
    (item,) = objective.plan(0)
    assert objective.fetch(item).real_GnCHW.shape[:2] == (4, 6)
