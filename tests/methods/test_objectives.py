"""Every objective alike: its loss falls, workers and grouping do not matter, resumes, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.config import MethodConfig
from rayd.data.augment import AugmentConfig
from rayd.distill.budget import Budget
from rayd.distill.contract import Codec, Objective
from rayd.distill.loop import Distillation, OptimiserConfig, Reduce
from rayd.errors import Refused
from rayd.methods import CODECS
from rayd.methods import OBJECTIVES as OBJECTIVE_CLASSES
from rayd.methods.dc import Gradient
from rayd.methods.dm import Distribution
from rayd.methods.mim4dd import Mim4dd
from rayd.methods.ncfm import Calibrate, Ncfm, PsiConfig
from rayd.nets.convnet import NetConfig
from rayd.schema import parse
from rayd.seeds import generator
from tests.support.matching import PSI, QUIET, distillation, pixels
from tests.support.workers import run_workers
from tests.support.worlds import TinyPixels, TinyWorld

OBJECTIVES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "dm": (Distribution.Config(batch_real=12), ()),
    "dsa": (Gradient.Config(batch_real=12, outer=3, inner=1), ()),
    "ncfm": (Ncfm.Config(batch_real=12, frequencies=64, pool=3), ()),
    "ncfm_psi": (Ncfm.Config(batch_real=12, frequencies=64, pool=3, psi=PSI), (Calibrate.Config(),)),
    "dm_mim4dd": (Distribution.Config(batch_real=12), (Mim4dd.Config(width=4),)),
}


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
    inputs = TinyWorld()
    codec = TinyPixels(inputs, ipc=5)
    objective = Distribution.Config(batch_real=8, batch_syn=2, classes_per_item=2).build(inputs)
    for item in objective.plan(3):
        syn = objective.synthetic(codec, item)
        assert syn.counts == (2, 2)
        wanted = torch.arange(item.what["first"], item.what["last"]).repeat_interleave(2)
        assert torch.equal(codec.classes()[syn.index_N], wanted)


def test_compiled_and_in_half_precision_as_eager() -> None:
    """One compiled objective end to end, in bf16: within what its eight bits allow."""
    found = []
    for precision, fast in (("fp32", False), ("bf16", True)):
        inputs = TinyWorld(precision=precision, compiled=fast)
        codec = TinyPixels(inputs)
        objective = Distribution.Config(batch_real=12).build(inputs)
        (item,) = objective.plan(0)
        value = objective(codec, item, objective.fetch(item)).value
        found.append((value.detach(), torch.autograd.grad(value, [codec.pixels])[0]))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0.03, atol=0)
    assert F.cosine_similarity(found[1][1].flatten(), found[0][1].flatten(), dim=0) > 0.99


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "own draws": (lambda: Distribution.Config(augment=AugmentConfig()), "share"),
    "no images": (lambda: Distribution.Config(batch_real=0), "batch_real"),
    "unknown distance": (lambda: parse(Gradient.Config, {"distance": "l1"}), "distance=l1: allowed is rows"),
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
    inputs = TinyWorld()
    codec = TinyPixels(inputs)
    objective = Ncfm.Config(batch_real=8, frequencies=32, pool=3).build(inputs)
    term = Calibrate.Config(weight=2.0, augment=QUIET).build(inputs, codec)
    (item,) = objective.plan(0)
    match = objective(codec, item, objective.fetch(item))
    images, targets = codec.decode(torch.arange(len(codec)))
    loss = F.cross_entropy(inputs.net(match.scene["teacher"], images), targets) * inputs.classes
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
    inputs, budget = TinyWorld(per_class=64), Budget(ipc=2)
    codec = method.codec.fit(budget, inputs.spec).build(inputs.spec, generator(0, "codec"))
    codec.enter(inputs.transform, budget)
    codec.encode(inputs.take, generator(0, "encode"))
    rates = OptimiserConfig(name="adam", lr=0.01)
    work = Distillation(codec, method.objective.build(inputs), [], steps=1, optimiser=rates, inputs=inputs)
    lower_own_loss(codec, work.objective, work.optimisers[: len(codec.players())])
