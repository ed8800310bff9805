from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F

from rayd.data.augment import AugmentConfig
from rayd.data.transform import Transform
from rayd.errors import Refused
from rayd.evaluate import score as rayd_score
from rayd.evaluate.batches import ImageSet, batches
from rayd.evaluate.recipe import Length, RecipeConfig
from rayd.evaluate.score import evaluate, factor
from rayd.nets.convnet import NetConfig
from rayd.numbers import summary
from rayd.schema import parse, to_dict
from rayd.seeds import generator
from tests.support.worlds import TinyPixels, tiny

CPU = torch.device("cpu")
IMAGES = tiny(60)
TRANSFORM = Transform.fit(IMAGES, "normalise")
NET = NetConfig(width=8).build(IMAGES.spec)
LEARNED = RecipeConfig(name="mtt", learned=True)
SHORT = RecipeConfig(name="short", steps=30, batch=20, lr=0.05, seeds=2)


def score(recipe=SHORT, source=IMAGES, net=NET, seeds=(0, 1), **kwargs):
    return evaluate(recipe, net, source, tiny(90, seed=1), TRANSFORM, seeds, compile=False, **kwargs)


def test_networks_learn_and_a_score_depends_on_its_own_seed_alone():
    both, second = score(), score(seeds=(1,))
    assert both[1].accuracy == second[0].accuracy and summary([one.accuracy for one in both])["mean"] > 0.8


def test_the_recipe_is_what_torch_does():
    """SGD with momentum and weight decay, AdamW, every schedule by step and by epoch: torch.optim on the same batches."""
    for recipe in (
        replace(SHORT, schedule="cosine"),
        replace(SHORT, optimiser="adamw", lr=0.01, schedule="fifths"),
        replace(SHORT, steps=None, epochs=9, batch=25),
        replace(SHORT, steps=None, epochs=10, batch=25, optimiser="adamw", lr=0.01, schedule="fifths"),
    ):
        theta = NET.init(generator(3, "init")).requires_grad_(True)
        if recipe.optimiser == "sgd":
            optimiser = torch.optim.SGD([theta], recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
        else:
            optimiser = torch.optim.AdamW([theta], recipe.lr, weight_decay=recipe.weight_decay)
        source = ImageSet.of(IMAGES, TRANSFORM)
        length = source.length(recipe)
        for step, (x, y) in enumerate(batches(recipe, source, 3, CPU, None)):
            epoch = step // length.epoch
            if recipe.schedule == "half" and step == (length.epochs // 2 + 1) * length.epoch:
                optimiser = torch.optim.SGD([theta], recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
            optimiser.param_groups[0]["lr"] = recipe.lr * factor(recipe.schedule, epoch, length.epochs)
            optimiser.zero_grad()
            F.cross_entropy(NET(theta, x), y).backward()
            optimiser.step()
        scorer = ImageSet.of(tiny(90, seed=1), TRANSFORM)
        with torch.no_grad():
            right = NET(theta, scorer.decode(torch.arange(90))[0]).argmax(1) == scorer.classes_N
        assert score(recipe, seeds=(3,))[0].accuracy == pytest.approx(right.float().mean().item(), abs=0.012)


def test_together_is_the_same_as_one_after_another():
    for recipe in (SHORT, replace(SHORT, optimiser="adamw", lr=0.01)):
        apart, stacked = score(recipe, seeds=(0, 1, 2)), score(recipe, seeds=(0, 1, 2), together=True)
        assert [a.accuracy for a in apart] == pytest.approx([b.accuracy for b in stacked], abs=0.023)


def test_chunks_change_nothing(monkeypatch):
    source = ImageSet.of(IMAGES, TRANSFORM)
    whole = list(batches(SHORT, source, 5, CPU, None))
    monkeypatch.setattr("rayd.evaluate.batches.CHUNK", 20 * 64 * 4 * 7)
    for (x, y), (a, b) in zip(whole, batches(SHORT, source, 5, CPU, None), strict=True):
        assert torch.allclose(x, a, atol=1e-5) and torch.equal(y, b)


def test_augmentation_is_grouped_but_each_image_has_its_own_numbers():
    recipe = replace(SHORT, augment=AugmentConfig(ops=("scale", "flip", "crop")))
    rows = torch.stack([x for x, _ in batches(recipe, ImageSet.of(IMAGES, TRANSFORM), 0, CPU, None)])
    assert rows.shape == (30, 20, 1, 8, 8)
    augment, draws, orders = recipe.augment.build(), generator(0, "augment"), generator(0, "batch")
    order = torch.cat([torch.randperm(60, generator=orders) for _ in range(10)])
    for i in range(30):
        draw = augment.draw(draws, 20, (20, 1, 8, 8))
        expected = augment(TRANSFORM(IMAGES.pixels_NCHW[order[i * 20 : i * 20 + 20]]), draw)
        assert torch.allclose(rows[i], expected, atol=1e-5)


def test_label_regimes_and_mixing():
    soft = ImageSet.tensors(torch.randn(6, 1, 8, 8), torch.arange(3).repeat(2), IMAGES.spec, torch.full((6, 3), 1 / 3))
    recipe = replace(SHORT, steps=4, augment=None)
    assert next(batches(recipe, soft, 0, CPU, None))[1].unique().tolist() == [pytest.approx(1 / 3)]
    assert next(batches(replace(recipe, labels="hard"), soft, 0, CPU, None))[1].unique().tolist() == [0.0, 1.0]
    theta = NET.init(generator(1, "init"))
    asked = replace(recipe, labels="teacher", temperature=4.0)
    x, y = next(batches(asked, soft, 0, CPU, (NET, theta)))
    assert torch.allclose(y, (NET(theta, x) / 4).softmax(1))
    hard = replace(recipe, labels="hard", steps=200)
    for mixed in (replace(hard, cutmix=1.0), replace(hard, mixup=0.8)):
        targets = torch.cat([y for _, y in batches(mixed, soft, 0, CPU, None)])
        assert torch.allclose(targets.sum(1), torch.ones(len(targets))) and ((targets > 0.05) & (targets < 0.95)).any()


def test_batch_norm_networks_keep_running_statistics():
    net = NetConfig(width=8, norm="batch").build(IMAGES.spec)
    assert summary([one.accuracy for one in score(replace(SHORT, steps=60), net=net)])["mean"] > 0.7


def test_a_recipe_that_does_not_fit_is_refused():
    codec = TinyPixels.Config(ipc=1).build(IMAGES.spec, torch.Generator())
    with pytest.raises(Refused, match=r"recipe=mtt.*recipe\.learned=false"):
        score(LEARNED, codec)
    with pytest.raises(Refused, match="without a teacher"):
        score(RecipeConfig(labels="teacher"), codec)
    with pytest.raises(Refused, match=r"recipe\.steps=0"):
        RecipeConfig(steps=0)
    assert len(score(replace(LEARNED, steps=3), codec, step_size=0.02)) == 2


def test_an_epoch_is_a_pass_over_what_is_stored():
    """MTT's 1000 epochs of 256 images on 500: 2000 steps. A factorised set of 100 images' numbers, 40 a batch: 3 a pass."""
    recipe = RecipeConfig(epochs=1000)
    assert recipe.steps is None and recipe.length(500, 500) == Length(2000, 2) and recipe.length(10, 10).steps == 1000
    factorised = ImageSet.tensors(torch.zeros(900, 1, 8, 8), torch.arange(900) % 3, IMAGES.spec)
    factorised = replace(factorised, stored=100)
    assert factorised.length(RecipeConfig(epochs=7, batch=40)) == Length(21, 3)
    assert factorised.length(RecipeConfig(epochs=7, batch=40, epoch="decoded")) == Length(161, 23)
    assert factorised.resident(CPU).length(RecipeConfig(epochs=7, batch=40)) == Length(21, 3)
    assert sum(1 for _ in batches(RecipeConfig(epochs=7, batch=40, augment=None), factorised, 0, CPU, None)) == 21
    codec = TinyPixels.Config(ipc=7).build(IMAGES.spec, torch.Generator())
    assert ImageSet.of(codec).stored == len(codec) == 21
    assert RecipeConfig().steps == 1000 and parse(RecipeConfig, to_dict(recipe)) == recipe
    with pytest.raises(
        Refused, match=r"recipe\.epochs=5: allowed is null beside recipe\.steps; add recipe\.steps=null"
    ):
        RecipeConfig(steps=3, epochs=5)
    with pytest.raises(Refused, match=r"recipe\.epochs=0"):
        RecipeConfig(epochs=0)
    assert recipe.shortened(3).length(500, 500) == Length(3)


def test_momentum_starts_afresh_after_half_the_epochs_and_one(monkeypatch):
    """Two steps an epoch, nine epochs: ten at the full rate, eight at a tenth, and Adam's counts begin again."""
    rates = []
    whole = rayd_score.step_function

    def watched(*how):
        step = whole(*how)

        def call(theta, m, v, x, y, hyper):
            rates.append((round(float(hyper[0]), 6), bool(m.abs().sum() == 0)))
            return step(theta, m, v, x, y, hyper)

        return call

    monkeypatch.setattr(rayd_score, "step_function", watched)
    score(replace(SHORT, steps=None, epochs=9, batch=30), seeds=(0,))
    assert rates == [(0.05, i == 0) for i in range(10)] + [(0.005, i == 0) for i in range(8)]


def test_schedules():
    assert [factor("half", i, 10) for i in (0, 5, 6, 9)] == [1, 1, 0.1, 0.1]
    assert [factor("fifths", i, 10) for i in (0, 1, 2, 8, 9)] == [1, 1, 0.5, 0.0625, 0.0625]
    assert factor("cosine", 0, 10) == 1 and factor("cosine", 5, 10) == pytest.approx(0.5)


def test_summary_is_students_interval():
    one = summary((0.1, 0.2, 0.3, 0.4, 0.5))
    assert one["mean"] == pytest.approx(0.3) and one["std"] == pytest.approx(math.sqrt(0.025))
    assert one["ci95"] == pytest.approx(2.776 * math.sqrt(0.025 / 5), rel=1e-3) and one["n"] == 5


def test_the_compiled_step_is_the_eager_one():
    recipe, net, scorer = replace(SHORT, steps=8), NetConfig(width=4, depth=1).build(IMAGES.spec), tiny(90, seed=1)
    fast = evaluate(recipe, net, IMAGES, scorer, TRANSFORM, [0], compile=True)
    slow = evaluate(recipe, net, IMAGES, scorer, TRANSFORM, [0], compile=False)
    assert fast[0].accuracy == pytest.approx(slow[0].accuracy, abs=0.012)


def test_one_compilation_serves_batches_of_every_size(monkeypatch):
    counter, real = torch._dynamo.testing.CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda fn, **keys: real(fn, backend=counter, **keys))
    torch._dynamo.reset()
    rayd_score.step_function.cache_clear()
    rayd_score._forward.cache_clear()
    for n in (20, 30, 57):
        evaluate(replace(SHORT, steps=3, batch=64), NET, tiny(n), tiny(600), TRANSFORM, (0, 1), compile=True)
    rayd_score.step_function.cache_clear()
    rayd_score._forward.cache_clear()
    assert counter.frame_count == 2, "the step and the test, once each"
