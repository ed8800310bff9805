"""Characteristic functions against closed forms; psi and the pool of networks."""

from __future__ import annotations

import math

import torch

from rayd.methods.ncfm import Ncfm, Psi, PsiConfig, characteristic, discrepancy
from tests.support.matching import PSI, distillation, random
from tests.support.worlds import TinyPixels, TinyWorld


def test_characteristic_function_of_a_gaussian() -> None:
    mean_D, t_TD = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64), random(20, 3)
    phi_2T = characteristic((random(1, 200_000, 3, seed=1) + mean_D), t_TD)[0]
    exact_T = torch.exp(1j * (t_TD @ mean_D) - t_TD.square().sum(1) / 2)
    torch.testing.assert_close(phi_2T, torch.stack([exact_T.real, exact_T.imag]).float(), atol=0.01, rtol=0)


def test_amplitude_and_phase_make_the_squared_distance() -> None:
    real, syn = random(4, 2, 50), random(4, 2, 50, seed=1)
    cheap = discrepancy(real, syn, 0.5, 0.5)
    torch.testing.assert_close(discrepancy(real, syn, 0.5, 0.5 + 1e-9), cheap, rtol=1e-6, atol=0)
    torch.testing.assert_close(cheap, math.sqrt(0.5) * (real - syn).norm(dim=1).mean(1))


def test_equal_sets_are_at_no_distance_with_a_finite_slope() -> None:
    for alpha, beta in ((0.5, 0.5), (0.3, 0.7)):
        syn = random(2, 2, 30).requires_grad_()
        value = discrepancy(syn.detach(), syn, alpha, beta).sum()
        assert float(value.detach()) < 1e-5
        assert torch.autograd.grad(value, syn)[0].isfinite().all()


def test_frequencies_are_a_scale_mixture_of_normals() -> None:
    inputs = TinyWorld()
    objective = Ncfm.Config(batch_real=8, frequencies=4096, pool=3, psi=PsiConfig(per_component=512)).build(inputs)
    source = objective.source(0)
    t_TD = objective.frequencies(source)
    assert len(t_TD.unique(dim=0)) == 4096
    scales_MD = objective.psi(source.noise[1])
    seen_MD = t_TD.unflatten(0, (8, 512)).square().mean(1).sqrt()
    torch.testing.assert_close(seen_MD, scales_MD.abs(), rtol=0.2, atol=0.01)


def test_psi_climbs_on_frozen_images() -> None:
    """Its gradient is not zero and its loss rises: what the public release fails."""
    inputs = TinyWorld()
    codec = TinyPixels(inputs)
    objective = Ncfm.Config(batch_real=12, frequencies=64, pool=3, psi=PSI).build(inputs)
    (item,) = objective.plan(0)
    data = objective.fetch(item)
    (player,) = objective.players()
    assert player.sign == -1
    values = []
    for _ in range(6):
        value = objective(codec, item, data).value
        values.append(float(value.detach()))
        grads = torch.autograd.grad(value, player.params)
        assert all(g.norm() > 0 for g in grads)
        with torch.no_grad():
            for p, g in zip(player.params, grads, strict=True):
                p.add_(g, alpha=1e-3)
    assert values == sorted(values) and values[-1] > values[0]


def test_the_engine_moves_psi_upwards() -> None:
    config = Ncfm.Config(batch_real=12, frequencies=64, pool=3, psi=PSI)
    work = distillation(config, steps=1)
    objective = work.objective
    assert isinstance(objective, Ncfm) and isinstance(objective.psi, Psi)
    before = [p.detach().clone() for p in objective.psi.parameters()]
    value = objective(work.codec, objective.plan(0)[0], objective.fetch(objective.plan(0)[0])).value
    slopes = torch.autograd.grad(value, list(objective.psi.parameters()))
    list(work.run())
    moves = [p.detach() - b for p, b in zip(objective.psi.parameters(), before, strict=True)]
    assert sum(float((m * s).sum()) for m, s in zip(moves, slopes, strict=True)) > 0


def test_pool_networks_lie_between_start_and_end() -> None:
    inputs = TinyWorld()
    objective = Ncfm.Config(batch_real=8, frequencies=32, pool=3).build(inputs)
    seen = set()
    for step in range(12):
        source = objective.source(step)
        expert = next(e for e in range(3) if torch.equal(inputs.theta(e, inputs.last_epoch), source.teacher_P))
        start_P, end_P = inputs.theta(expert, 0), source.teacher_P
        at = ((source.theta_P - end_P) @ (start_P - end_P)) / (start_P - end_P).square().sum()
        torch.testing.assert_close(source.theta_P, torch.lerp(end_P, start_P, at), rtol=1e-4, atol=1e-5)
        assert 0 <= float(at) <= 1
        seen.add(expert)
    assert seen == {0, 1, 2}
