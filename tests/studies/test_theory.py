"""The multi-index experiment: the teacher, one-step matching on vectors, what is measured, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayd.errors import Refused
from rayd.methods.dc import parameter_gradient
from rayd.studies.theory.match import OneStep, Pairs, TheoryInputs
from rayd.studies.theory.page import html
from rayd.studies.theory.sweep import Points, TheoryConfig, TheoryPoint, angle, energy, measure, slope, sweep, verdict
from rayd.studies.theory.task import Second, Student, Task

SMALL = TheoryConfig(
    d=(8,), r=(1,), width=(16,), base_d=8, base_r=1, base_width=16, pairs=(2, 4), steps=250, pool=4, seeds=1
)


def test_the_teacher_sees_its_subspace_only() -> None:
    task = Task.draw(12, 3, 0)
    assert torch.allclose(task.basis_dr.T @ task.basis_dr, torch.eye(3), atol=1e-5)
    x, y = task.examples(20000, "train", noise=0.0)
    assert abs(float(y.var()) - 1) < 0.1 and abs(float(y.mean())) < 0.05
    inside = x @ task.basis_dr @ task.basis_dr.T
    assert torch.allclose(task.clean(inside), y, atol=1e-4)


def test_a_student_starts_at_zero_and_its_first_step_finds_the_subspace() -> None:
    task, student = Task.draw(10, 2, 1), Student(10, 32)
    x, y = task.examples(40000, "train")
    theta = student.init(torch.Generator().manual_seed(0))
    zero = student.loss(theta, x, torch.zeros(len(x)))
    assert float(zero) < 1e-8
    stepped = student.stepped(parameter_gradient(student.loss, theta, x, y))
    assert energy(stepped, task.basis_dr) > 0.9 > energy(theta.view(32, 10), task.basis_dr)


def test_one_step_matching_is_zero_on_the_training_set_itself() -> None:
    """The same objective as images': its gradient reaches vectors and labels."""
    task, student = Task.draw(6, 1, 2), Student(6, 8)
    x, y = task.examples(64, "train")
    inputs = TheoryInputs.build(task, student, x, y, 2)
    codec, objective = Pairs(64, 6, 0), OneStep(inputs)
    with torch.no_grad():
        codec.x_Md.copy_(x)
        codec.y_M.copy_(y)
    value = objective(codec, objective.plan(0)[0], None).value
    assert float(value) < 1e-8
    with torch.no_grad():
        codec.y_M[0] += 1
    value = objective(codec, objective.plan(1)[0], None).value
    grads = torch.autograd.grad(value, [codec.x_Md, codec.y_M])
    assert all(float(g.abs().sum()) > 0 for g in grads)


def test_the_second_layer_is_found_again_from_labels_on_probes() -> None:
    task = Task.draw(5, 1, 3)
    x, y = task.examples(4000, "train")
    second = Second.draw(task.basis_dr.T.expand(24, 5) * torch.tensor([1.0, -1.0]).repeat(12)[:, None], 0, "softplus")
    a = second.fit(x, y)
    probes = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    again = second.fit(probes, (second.features(probes) @ a).float(), 1e-6)
    test_x, truth = task.examples(2000, "test", 0.0)
    assert second.error(again, test_x, truth) < second.error(a, test_x, truth) + 0.02 < 0.1


def test_energy_and_angle() -> None:
    basis = torch.eye(4)[:, :2]
    assert energy(torch.tensor([[3.0, 0, 4.0, 0]]), basis) == pytest.approx(0.36)
    assert angle(torch.eye(4)[:2], basis) == pytest.approx(0, abs=1e-6)
    assert angle(torch.eye(4)[2:], basis) == pytest.approx(1)
    assert angle(torch.eye(4)[:1], basis) == 1.0


def test_a_small_memory_encodes_the_subspace() -> None:
    points = list(sweep(SMALL, 0))
    assert len(points) == 1
    point = points[0]
    assert point.pairs in (2, 4) and point.energy > 0.9 and point.floats == point.pairs * 9 + 16
    assert point.error < 0.1 < point.error_random
    assert list(sweep(SMALL, 0, points)) == []
    assert measure(SMALL, 8, 1, 16, 0) == point
    answer = verdict(SMALL, points)
    assert answer["not_reached"] == [] and answer["energy"]["d=8 r=1 L=16"] > 0.9


def test_the_page_escapes_and_the_points_are_kept(tmp_path: Path) -> None:
    point = TheoryPoint(8, 1, 16, 0, 2, 34, 0.95, 0.1, 0.01, 0.05, 0.04, 0.9, ((2, 0.05),))
    Points(str(tmp_path), SMALL, 0).add(point)
    assert Points(str(tmp_path), SMALL, 0).rows == [point]
    with pytest.raises(Refused, match="another steps"):
        Points(str(tmp_path), replace(SMALL, steps=9), 0)
    page = html({**verdict(SMALL, [point]), "claim": "<script>", "not_reached": ["<script>"]})
    assert page.count("<svg") == 4 and "<script>" not in page and page.count("&lt;script&gt;") == 2


def test_slopes_come_with_intervals() -> None:
    exact = slope([(2.0, 3 * 2.0**1.5), (4.0, 3 * 4.0**1.5), (8.0, 3 * 8.0**1.5)])
    assert exact is not None and exact.slope == pytest.approx(1.5) and exact.high - exact.low < 1e-6
    loose = slope([(2.0, 2.0), (4.0, 5.0), (8.0, 7.0), (2.0, 2.5)])
    assert loose is not None and loose.low < loose.slope < loose.high
    assert slope([(2.0, 1.0), (2.0, 2.0), (2.0, 3.0)]) is None


def test_what_was_not_reached_is_said() -> None:
    point = TheoryPoint(8, 1, 16, 0, None, None, 0.5, 1.0, 1.0, 0.9, 0.1, 0.9, ((2, 0.9),))
    assert verdict(SMALL, [point])["not_reached"] == ["d=8 r=1 L=16 seed 0"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"r": (1, 65)}, "as many directions"),
        ({"width": (7,)}, "even"),
        ({"pairs": (3, 2)}, "ascending"),
        ({"share": 1.0}, "share"),
    ],
)
def test_impossible_tasks_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(Refused, match=message):
        TheoryConfig(**wrong)  # type: ignore[arg-type]
