"""DM, DC/DSA and NCFM: oracles of their mathematics, independence of workers and grouping, resumes, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.augment import AugmentConfig
from rayd.budget import Budget
from rayd.config import MethodConfig
from rayd.distill import Distillation, OptimiserConfig, Reduce, identity
from rayd.errors import Refused
from rayd.flat import Flat
from rayd.methods import CODECS
from rayd.methods import OBJECTIVES as OBJECTIVE_CLASSES
from rayd.methods.calibrate import Calibrate
from rayd.methods.contract import Codec, Objective
from rayd.methods.distribution import Distribution
from rayd.methods.gradient import Gradient, distance, parameter_gradient
from rayd.methods.mim4dd import Mim4dd
from rayd.methods.ncfm import Ncfm, Psi, PsiConfig, characteristic, discrepancy
from rayd.nets import NetConfig
from rayd.seeds import generator
from tests.workers import run_workers
from tests.worlds import TinyPixels, TinyWorld

QUIET = AugmentConfig(ops=(), share="batch")
PSI = PsiConfig(per_component=4, lr=0.01)
OBJECTIVES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "dm": (Distribution.Config(batch_real=12), ()),
    "dsa": (Gradient.Config(batch_real=12, outer=3, inner=1), ()),
    "ncfm": (Ncfm.Config(batch_real=12, frequencies=64, pool=3), ()),
    "ncfm_psi": (Ncfm.Config(batch_real=12, frequencies=64, pool=3, psi=PSI), (Calibrate.Config(),)),
    "dm_mim4dd": (Distribution.Config(batch_real=12), (Mim4dd.Config(width=4),)),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "test"), dtype=torch.float64)


def distillation(
    config: Any, terms: tuple[Any, ...] = (), steps: int = 5, share: tuple[int, int] = (0, 1), reduce: Reduce = identity
) -> Distillation:
    world = TinyWorld()
    codec = TinyPixels(world)
    rates = OptimiserConfig(name="sgd", lr=0.05)
    built = [term.build(world, codec) for term in terms]
    return Distillation(
        codec, config.build(world), built, steps=steps, optimiser=rates, world=world, share=share, reduce=reduce
    )


def pixels(work: Distillation) -> Tensor:
    return work.codec.decode(torch.arange(len(work.codec)))[0].detach()


# ---- characteristic functions ---------------------------------------------------------------------------------------


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
    world = TinyWorld()
    objective = Ncfm.Config(batch_real=8, frequencies=4096, pool=3, psi=PsiConfig(per_component=512)).build(world)
    source = objective.source(0)
    t_TD = objective.frequencies(source)
    assert len(t_TD.unique(dim=0)) == 4096
    scales_MD = objective.psi(source.noise[1])
    seen_MD = t_TD.unflatten(0, (8, 512)).square().mean(1).sqrt()
    torch.testing.assert_close(seen_MD, scales_MD.abs(), rtol=0.2, atol=0.01)


def test_psi_climbs_on_frozen_images() -> None:
    """Its gradient is not zero and its loss rises: what the public release fails."""
    world = TinyWorld()
    codec = TinyPixels(world)
    objective = Ncfm.Config(batch_real=12, frequencies=64, pool=3, psi=PSI).build(world)
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
    config, _ = OBJECTIVES["ncfm_psi"]
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
    world = TinyWorld()
    objective = Ncfm.Config(batch_real=8, frequencies=32, pool=3).build(world)
    seen = set()
    for step in range(12):
        source = objective.source(step)
        expert = next(e for e in range(3) if torch.equal(world.theta(e, world.last_epoch), source.teacher_P))
        start_P, end_P = world.theta(expert, 0), source.teacher_P
        at = ((source.theta_P - end_P) @ (start_P - end_P)) / (start_P - end_P).square().sum()
        torch.testing.assert_close(source.theta_P, torch.lerp(end_P, start_P, at), rtol=1e-4, atol=1e-5)
        assert 0 <= float(at) <= 1
        seen.add(expert)
    assert seen == {0, 1, 2}


# ---- distribution matching ------------------------------------------------------------------------------------------


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
    world = TinyWorld()
    net: Any = LinearNet(world.spec.floats, 7)
    world.net = net
    codec = TinyPixels(world)
    objective = Distribution.Config(batch_real=12, augment=QUIET).build(world)
    (item,) = objective.plan(0)
    data = objective.fetch(item)
    (found,) = torch.autograd.grad(objective(codec, item, data).value, [codec.pixels])
    weight_FD = data.source.theta_P.view(7, -1)
    gap_GD = codec.pixels.detach().unflatten(0, (4, 2)).mean(1).flatten(1) - data.real_GnCHW.mean(1).flatten(1)
    exact_GD = 2 / 2 * gap_GD @ weight_FD.T @ weight_FD
    torch.testing.assert_close(found.flatten(1), exact_GD.repeat_interleave(2, 0), rtol=1e-4, atol=1e-4)


def test_siamese_augmentation_keeps_equal_sets_equal() -> None:
    world = TinyWorld(per_class=6)
    codec = TinyPixels(world, ipc=6, start=world.take)
    for step in range(6):
        objective = Distribution.Config(batch_real=6).build(world)
        (item,) = objective.plan(step)
        assert float(objective(codec, item, objective.fetch(item)).value) < 1e-8


def test_real_images_are_drawn_from_the_whole_class() -> None:
    objective = Distribution.Config(batch_real=5).build(TinyWorld())
    rows = torch.stack([objective.rows(step, 2) for step in range(40)])
    assert set(rows.flatten().tolist()) == set(range(48, 72))
    assert all(len(set(row.tolist())) == 5 for row in rows)


def test_a_small_class_is_repeated() -> None:
    world = TinyWorld(per_class=4)
    world.labels_N = torch.tensor([0] * 1 + [1] * 7 + [2] * 4 + [3] * 4)
    objective = Distribution.Config(batch_real=6).build(world)
    (item,) = objective.plan(0)
    assert objective.fetch(item).real_GnCHW.shape[:2] == (4, 6)


# ---- gradient matching ----------------------------------------------------------------------------------------------

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
    world = TinyWorld()
    codec = TinyPixels(world)
    objective = Gradient.Config(batch_real=12, augment=QUIET).build(world)
    (item,) = objective.plan(0)
    data = objective.fetch(item)
    match = objective(codec, item, data)
    (found,) = torch.autograd.grad(match.value, [codec.pixels])
    theta_P = objective.theta_P.detach().requires_grad_()

    def gradient(images: Tensor, targets: Tensor) -> Tensor:
        loss = -(targets * world.net(theta_P, images).log_softmax(1)).sum(1).mean()
        return torch.autograd.grad(loss, theta_P, create_graph=True)[0]

    total = torch.zeros(())
    for c in range(world.classes):
        images, targets = codec.decode(codec.of_class(c))
        real_P = gradient(data.real_GnCHW[c], data.targets_GnK[c]).detach()
        total = total + distance(real_P, gradient(images, targets), world.net.flat)
    torch.testing.assert_close(match.value, total)
    torch.testing.assert_close(found, torch.autograd.grad(total, [codec.pixels])[0], rtol=1e-3, atol=1e-5)


def test_an_episode_trains_its_network_and_then_starts_another() -> None:
    work = distillation(Gradient.Config(batch_real=12, outer=3, inner=2, lr_net=0.1), steps=3)
    objective = work.objective
    assert isinstance(objective, Gradient)
    codec, world = work.codec, work.world

    def loss() -> float:
        images, targets = codec.decode(torch.arange(len(codec)))
        return float(F.cross_entropy(world.net(objective.theta_P, images), targets))

    first, steps = objective.theta_P.clone(), work.run()
    untrained = loss()
    next(steps)
    assert not torch.equal(objective.theta_P, first) and loss() < untrained
    list(steps)
    torch.testing.assert_close(objective.theta_P, world.net.init(generator(0, "net", 1)))


# ---- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_lowers_its_own_loss(name: str) -> None:
    config, terms = OBJECTIVES[name]
    work = distillation(config, terms)
    lower_own_loss(work.codec, work.objective, work.optimisers[: len(work.codec.players())])


def lower_own_loss(codec: Codec, objective: Objective, optimisers: list[torch.optim.Optimizer]) -> None:
    """Steps of the codec's optimisers on one planned step's items."""
    items = objective.plan(0)
    data = [objective.fetch(item) for item in items]
    values = []
    for _ in range(12):
        total = sum((objective(codec, i, d).value for i, d in zip(items, data, strict=True)), torch.zeros(()))
        values.append(float(total.detach()))
        params = [p for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]]
        for p, g in zip(params, torch.autograd.grad(total, params), strict=True):
            p.grad = g
        for optimiser in optimisers:
            optimiser.step()
    assert min(values[-3:]) < values[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_number_of_workers_does_not_matter(name: str) -> None:
    config, terms = OBJECTIVES[name]
    size = 0 if Mim4dd.Config in map(type, terms) else 1
    config = type(config)(**{**vars(config), "classes_per_item": size})
    results: dict[int, Tensor] = {}
    for workers in (1, 2, 4) if size else (1, 2):

        def make(share: tuple[int, int], reduce: Reduce) -> Distillation:
            return distillation(config, terms, steps=20, share=share, reduce=reduce)

        works, _ = run_workers(workers, make)
        results[workers] = pixels(works[0])
        for other in works[1:]:
            torch.testing.assert_close(pixels(other), results[workers], rtol=0, atol=0)
    for workers, found in results.items():
        gap = (found - results[1]).norm() / results[1].norm()
        assert gap < 1e-4, f"{workers} workers: relative difference {gap:.2e}"


@pytest.mark.parametrize("name", ["dm", "dsa", "ncfm"])
def test_grouping_classes_into_items_does_not_matter(name: str) -> None:
    config, _ = OBJECTIVES[name]
    found = []
    for size in (0, 1, 3):
        work = distillation(type(config)(**{**vars(config), "classes_per_item": size}), steps=6)
        list(work.run())
        found.append(pixels(work))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_is_the_uninterrupted_one(name: str) -> None:
    config, terms = OBJECTIVES[name]
    whole = distillation(config, terms, steps=5)
    list(whole.run())
    first, second = distillation(config, terms, steps=2), distillation(config, terms, steps=5)
    list(first.run())
    second.load(first.state())
    list(second.run())
    for key, value in whole.state().items():
        assert torch.equal(value, second.state()[key]), key


def test_synthetic_subsets_stay_within_their_class() -> None:
    world = TinyWorld()
    codec = TinyPixels(world, ipc=5)
    objective = Distribution.Config(batch_real=8, batch_syn=2, classes_per_item=2).build(world)
    for item in objective.plan(3):
        syn = objective.synthetic(codec, item)
        assert syn.counts == (2, 2)
        wanted = torch.arange(item.what["first"], item.what["last"]).repeat_interleave(2)
        assert torch.equal(codec.classes()[syn.index_N], wanted)


def test_compiled_and_in_half_precision_as_eager() -> None:
    """One compiled objective end to end, in bf16: within what its eight bits allow."""
    found = []
    for precision, fast in (("fp32", False), ("bf16", True)):
        world = TinyWorld(precision=precision, compiled=fast)
        codec = TinyPixels(world)
        objective = Distribution.Config(batch_real=12).build(world)
        (item,) = objective.plan(0)
        value = objective(codec, item, objective.fetch(item)).value
        found.append((value.detach(), torch.autograd.grad(value, [codec.pixels])[0]))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0.03, atol=0)
    assert F.cosine_similarity(found[1][1].flatten(), found[0][1].flatten(), dim=0) > 0.99


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "own draws": (lambda: Distribution.Config(augment=AugmentConfig()), "share"),
    "no images": (lambda: Distribution.Config(batch_real=0), "batch_real"),
    "unknown distance": (lambda: Gradient.Config(distance="l1"), "distance"),
    "a psi without a mixture": (lambda: Ncfm.Config(frequencies=100, psi=PsiConfig()), "frequencies"),
    "no weights": (lambda: Ncfm.Config(alpha=0.0, beta=0.0), "alpha"),
    "more of a pool than there is": (lambda: Ncfm.Config().build(TinyWorld()), "pool"),
    "untrained batch norm": (
        lambda: Distribution.Config().build(TinyWorld(config=NetConfig(depth=2, width=4, norm="batch"))),
        "net.norm",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_nothing_is_refused(name: str) -> None:
    build, word = REFUSED[name]
    with pytest.raises(Refused, match=word):
        build()


def test_calibration_needs_a_trained_network() -> None:
    config = Ncfm.Config(batch_real=8, frequencies=32, pool=0)
    assert "nets" in config.needs and "pool" in Ncfm.Config().needs
    work = distillation(config, (Calibrate.Config(),), steps=1)
    with pytest.raises(Refused, match="pool"):
        list(work.run())


def test_calibration_is_the_mean_loss_of_each_class() -> None:
    world = TinyWorld()
    codec = TinyPixels(world)
    objective = Ncfm.Config(batch_real=8, frequencies=32, pool=3).build(world)
    term = Calibrate.Config(weight=2.0, augment=QUIET).build(world, codec)
    (item,) = objective.plan(0)
    match = objective(codec, item, objective.fetch(item))
    images, targets = codec.decode(torch.arange(len(codec)))
    loss = F.cross_entropy(world.net(match.scene["teacher"], images), targets) * world.classes
    torch.testing.assert_close(term(codec, item, match).value, match.value + 2 * loss)


# ---- every sentence -------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "mtt": {"inner_steps": 2, "expert_epochs": 1, "last": 2, "batch": 8},
    "gradient": {"batch_real": 12},
    "distribution": {"batch_real": 12},
    "ncfm": {"batch_real": 12, "frequencies": 64, "pool": 3},
}


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("objective_name", SETTINGS)
@pytest.mark.parametrize("codec_name", CODECS)
def test_every_meaningful_pair_steps_and_every_other_is_refused(
    codec_name: str, objective_name: str, labels: str
) -> None:
    sentence = {
        "codec": {"name": codec_name, "labels": labels},
        "objective": {"name": objective_name, **SETTINGS[objective_name]},
    }
    if labels == "soft" and not OBJECTIVE_CLASSES[objective_name].uses_labels:
        with pytest.raises(Refused, match="labels no gradient"):
            MethodConfig.from_plain(sentence)
        return
    method = MethodConfig.from_plain(sentence)
    world = TinyWorld(per_class=64)
    codec = method.codec.fit(Budget(ipc=2), world.spec).build(world.spec, generator(0, "codec"))
    codec.encode(world.take, generator(0, "encode"))
    rates = OptimiserConfig(name="adam", lr=0.01)
    work = Distillation(codec, method.objective.build(world), [], steps=1, optimiser=rates, world=world)
    lower_own_loss(codec, work.objective, work.optimisers[: len(codec.players())])
