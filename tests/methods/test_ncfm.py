"""Characteristic functions against closed forms; psi and the pool of networks."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from rayd.data.config import DataConfig
from rayd.data.load import load
from rayd.data.transform import Transform
from rayd.distill.budget import Budget
from rayd.distill.contract import OptimiserConfig
from rayd.distill.inputs import RunInputs
from rayd.distill.loop import make_optimiser
from rayd.methods.idc import Formation
from rayd.methods.ncfm import Ncfm, Psi, PsiConfig, characteristic, discrepancy
from rayd.methods.pixel import Pixel
from rayd.nets.convnet import NetConfig
from rayd.seeds import generator
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
    scales_MD = PsiConfig().reach * objective.psi(source.noise[1])
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


def test_psi_is_above_plain_frequencies_on_real_images_and_climbs(real_images: Path) -> None:
    """CIFAR-10: the discrepancy under psi exceeds the one under N(0, I) before any ascent, and more so after 300."""
    images = load(DataConfig(name="cifar10", path=str(real_images / "cifar10"), limit=600, val=20, split="next")).train
    net, space = NetConfig(width=16).build(images.spec), Transform.fit(images, "normalise")
    inputs = RunInputs(net, space, images, torch.device("cpu"), 0, compiled=False)
    codec = Formation.Config(under=Pixel.Config()).fit(Budget(ipc=1), images.spec).build(images.spec, generator(0, "c"))
    codec.encode(inputs.start_images(0), generator(0, "e"))
    rest = {"batch_real": 24, "frequencies": 512, "pool": 0}

    def discrepancy_of(objective: Ncfm) -> float:
        items = [objective.plan(step)[0] for step in range(3)]
        values = [objective(codec, item, objective.fetch(item)).metrics["apart"] for item in items]
        return sum(float(torch.as_tensor(value).detach()) for value in values) / len(values)

    plain = discrepancy_of(Ncfm.Config(**rest).build(inputs))
    assert discrepancy_of(Ncfm.Config(**rest, sigma=2.0).build(inputs)) > plain, "sigma alone does it, too"
    objective = Ncfm.Config(**rest, psi=PsiConfig()).build(inputs)
    before = discrepancy_of(objective)
    assert before > 1.1 * plain
    (player,) = objective.players()
    ascent = make_optimiser(player, OptimiserConfig())
    data = objective.fetch(objective.plan(7)[0])
    with torch.no_grad():
        real = [objective.embed_real(data.source.theta_P, part)[None] for part in data.real_GnCHW]
        syn = objective.synthetic(codec, objective.plan(7)[0])
        fake = objective.embed(data.source.theta_P, syn.views_NCHW)
    for step in range(300):
        t_TD = objective.frequencies(objective.source(1000 + step))
        phi = torch.cat([objective.phi(part, t_TD) for part in real])
        apart = discrepancy(phi, syn.by_class(lambda part, t=t_TD: objective.phi(part, t), fake), 0.5, 0.5)
        for p, g in zip(player.params, torch.autograd.grad(-300 * apart.sum(), player.params), strict=True):
            p.grad = g
        ascent.step()
    assert discrepancy_of(objective) > 1.01 * before
