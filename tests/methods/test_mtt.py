"""Trajectory matching: the step size against the published update, written down independently."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rayd.data.augment import AugmentConfig
from rayd.distill.budget import Budget
from rayd.distill.loop import Distillation, OptimiserConfig
from rayd.methods.mtt import FLOOR, Mtt
from rayd.methods.pixel import Pixel
from rayd.seeds import generator
from tests.support.worlds import TinyWorld

STEPS = 30


def published(inputs: TinyWorld, objective: Mtt, images: torch.Tensor, rate: float, lr_images: float) -> list[float]:
    """MTT's update as its repository has it: one graph through all inner steps, SGD with momentum 0.5 on the images and
    on the raw step size, which is then clamped (HaBa, SPEED)."""
    x, beta = images.clone(), torch.tensor(objective.config.step_size)
    labels = torch.arange(len(x)) % inputs.classes
    x_velocity, velocity, out = torch.zeros_like(x), 0.0, []
    for step in range(STEPS):
        segment = inputs.segment(**objective.plan(step)[0].what)
        x, beta = x.detach().requires_grad_(), beta.detach().requires_grad_()
        theta = segment.start_P.clone().requires_grad_()
        for _ in range(objective.config.inner_steps):
            loss = F.cross_entropy(inputs.net(theta, x), labels)
            (g,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - beta * g
        loss = (theta - segment.end_P).square().sum() / (segment.start_P - segment.end_P).square().sum()
        by_x, by_beta = torch.autograd.grad(loss, [x, beta])
        x_velocity, velocity = 0.5 * x_velocity + by_x, 0.5 * velocity + by_beta
        x, beta = x - lr_images * x_velocity, (beta - rate * velocity).clamp(min=0.001)
        out.append(float(beta.detach()))
    return out


@pytest.mark.parametrize(("start", "rate"), [(0.01, 1e-4), (0.001, 1e-3), (0.05, 3e-2)])
def test_the_step_size_moves_as_published(start: float, rate: float) -> None:
    inputs = TinyWorld(experts=4)
    config = Mtt.Config(
        inner_steps=4, expert_epochs=1, last=2, batch=None, augment=AugmentConfig(ops=()), step_size=start, lr_step=rate
    )
    objective = config.build(inputs)
    codec = Pixel.Config().fit(Budget(ipc=2), inputs.spec).build(inputs.spec, generator(0, "codec"))
    codec.encode(inputs.take, generator(0, "encode"))
    wanted = published(inputs, objective, codec.pixels.detach(), rate, lr_images=5.0)
    run = OptimiserConfig(name="sgd", lr=5.0, momentum=0.5, weight_decay=0.0)
    work = Distillation(codec, objective, [], steps=STEPS, optimiser=run, inputs=inputs)
    seen = []
    for _ in work.run():
        seen.append(work.objective.step_size())
    assert seen == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) > min(wanted) * 1.05, "it moves"
    if start == 0.05:
        assert min(wanted) == pytest.approx(FLOOR), "and meets its floor"


def test_a_state_of_the_former_version_is_loaded() -> None:
    objective = Mtt.Config(last=1, expert_epochs=1).build(TinyWorld())
    objective.load({"log_step": torch.tensor(math.log(0.02))})
    assert objective.step_size() == pytest.approx(0.02)
