"""Guidance by real samples, and the contrast of hallucinators with its rival."""

from __future__ import annotations

import pytest
import torch

from rayd.data.augment import AugmentConfig
from rayd.data.images import Spec
from rayd.distill.budget import Budget
from rayd.distill.contract import Item, Match, Objective
from rayd.distill.loop import Distillation, OptimiserConfig
from rayd.errors import Refused
from rayd.methods.haba import Contrast, Haba, supervised_contrast
from rayd.methods.mtt import Mtt
from rayd.methods.nsd import Guidance, Nsd
from rayd.methods.pixel import Pixel
from rayd.seeds import seed_of
from tests.support.worlds import TinyWorld

SPEC = Spec((3, 16, 16), 3)
NONE = AugmentConfig(ops=())


def small() -> TinyWorld:
    """30 real images, each class about a shape of its own."""
    return TinyWorld(classes=3, per_class=10, shape=SPEC.shape)


class Nothing(Objective):
    """Matches nothing: what terms do alone."""

    gives = frozenset({"net", "theta"})

    def __init__(self, inputs: TinyWorld) -> None:
        super().__init__()
        self.inputs = inputs

    def plan(self, step: int) -> list[Item]:
        return [Item(step, i, seed_of(3, "item", step, i)) for i in range(2)]

    def forward(self, codec, item, data) -> Match:
        theta = self.inputs.net.init(torch.Generator().manual_seed(item.seed % 1000))
        value = sum(p.sum() for p in codec.parameters()) * 0
        return Match(value, scene={"net": self.inputs.net, "theta": theta})


def moved(codec, terms, steps=40, lr=0.02):
    inputs = terms[0].inputs
    work = Distillation(codec, Nothing(inputs), terms, steps=steps, optimiser=OptimiserConfig(lr=lr), inputs=inputs)
    return list(work.run())


def test_guidance_draws_features_towards_real_ones():
    inputs = small()
    codec = Pixel.Config(start="noise").fit(Budget(ipc=2), SPEC).build(SPEC, torch.Generator().manual_seed(0))
    term = Guidance.Config(weight=1.0, augment=NONE).build(inputs, codec)
    steps = moved(codec, [term])
    first, last = (sum(s.value for s in part) / 5 for part in (steps[:5], steps[-5:]))
    assert last < 0.7 * first
    assert steps[0].metrics["guidance"] == pytest.approx(steps[0].value, rel=1e-4)


def test_guidance_is_zero_for_the_real_images_themselves():
    inputs = small()
    codec = Pixel.Config().fit(Budget(ipc=10), SPEC).build(SPEC, torch.Generator().manual_seed(0))
    codec.encode(inputs.take, torch.Generator())
    item = Nothing(inputs).plan(0)[0]
    match = Nothing(inputs)(codec, item, None)
    assert (
        float(Guidance.Config(weight=0.1, augment=NONE).build(inputs, codec)(codec, item, match).value.detach()) < 1e-6
    )
    off = Guidance.Config(weight=0.0).build(inputs, codec)(codec, item, match)
    assert off is match, "weight 0 costs nothing"


def test_a_weight_by_ratio_of_gradients():
    """At the first step the term's gradient is `ratio` of the objective's; a resumed run keeps the weight."""

    def work(steps):
        inputs = TinyWorld()
        codec = Pixel.Config().fit(Budget(ipc=2), inputs.spec).build(inputs.spec, torch.Generator().manual_seed(0))
        objective = Mtt.Config(inner_steps=3, expert_epochs=1, last=2, items=2).build(inputs)
        term = Guidance.Config(ratio=0.3).build(inputs, codec)
        run = OptimiserConfig(lr=0.02)
        return Distillation(codec, objective, [term], steps=steps, optimiser=run, inputs=inputs)

    first = work(3)
    codec, (term,), objective = first.codec, first.terms, first.objective
    item = objective.plan(0)[0]
    match = objective(codec, item, objective.fetch(item))
    with pytest.raises(ValueError, match="not set yet"):
        term(codec, item, match)
    alone, main = (
        torch.autograd.grad(loss, codec.pixels, retain_graph=True)[0].norm()
        for loss in (term.value(codec, item, match).value, match.value)
    )
    list(first.run())
    assert float(term.weight) == pytest.approx(0.3 * float(main / alone), rel=1e-4)
    second = work(4)
    second.load(first.state())
    list(second.run())
    assert second.terms[0].weight == term.weight


def test_guidance_looks_from_where_the_item_goes():
    """The network matched towards, where there is one."""
    inputs = TinyWorld()
    codec = Pixel.Config().fit(Budget(ipc=2), inputs.spec).build(inputs.spec, torch.Generator().manual_seed(0))
    objective = Mtt.Config(inner_steps=1, expert_epochs=1, last=2).build(inputs)
    item = objective.plan(0)[0]
    match = objective(codec, item, objective.fetch(item))
    term = Guidance.Config(weight=1.0).build(inputs, codec)
    towards = term.value(codec, item, match).value
    there = Match(match.value, scene={"net": inputs.net, "theta": inputs.segment(**item.what).end_P})
    assert torch.equal(towards, term.value(codec, item, there).value)


def test_guidance_repeats_itself():
    inputs = small()
    codec = Pixel.Config().fit(Budget(ipc=2), SPEC).build(SPEC, torch.Generator().manual_seed(0))
    term, item = Guidance.Config(weight=0.1, classes=2).build(inputs, codec), Nothing(inputs).plan(4)[1]
    one, two = (float(term(codec, item, Nothing(inputs)(codec, item, None)).value.detach()) for _ in range(2))
    assert one == two > 0


@pytest.mark.parametrize("config", [Haba.Config(), Nsd.Config(rank=4)])
def test_contrast_pairs_are_one_image_under_two_alternatives(config):
    inputs = small()
    codec = config.fit(Budget(ipc=4), SPEC).build(SPEC, torch.Generator().manual_seed(0))
    term = Contrast.Config(batch=16).build(inputs, codec)
    first, second = term.pair(codec, torch.Generator().manual_seed(1))
    axes = list(codec.axes.values())
    for place, axis in enumerate(codec.axes):
        after = int(torch.tensor(axes[place + 1 :]).prod())
        same = first // after % axes[place] == second // after % axes[place]
        assert not same.any() if axis == term.axis else same.all()
    assert int(second.max()) < len(codec)


def test_the_rival_moves_by_its_own_loss_alone():
    """What the codec's players get is the gradient of the value; what the rival gets, that of its loss."""
    inputs = small()
    codec = Haba.Config().fit(Budget(ipc=6), SPEC).build(SPEC, torch.Generator().manual_seed(0))
    codec.encode(inputs.take, torch.Generator().manual_seed(1))
    term = Contrast.Config(lr=0.1).build(inputs, codec)
    item = Nothing(inputs).plan(0)[0]
    match = term(codec, item, Nothing(inputs)(codec, item, None))
    assert torch.autograd.grad(match.value, [term.rival], allow_unused=True, retain_graph=True) == (None,)
    leaves = [p for p in codec.parameters()]
    assert all(
        g is None for g in torch.autograd.grad(match.losses["rival"], leaves, allow_unused=True, retain_graph=True)
    )
    before = term.rival.detach().clone()
    steps = moved(codec, [term], steps=60, lr=1e-6)
    assert not torch.equal(before, term.rival)
    rival = [s.metrics["rival"] for s in steps]
    assert sum(rival[-10:]) < 0.8 * sum(rival[:10]), "the rival learns"


def test_contrast_pushes_hallucinators_apart():
    inputs = small()
    codec = Haba.Config().fit(Budget(ipc=6), SPEC).build(SPEC, torch.Generator().manual_seed(0))
    codec.encode(inputs.take, torch.Generator().manual_seed(1))
    term = Contrast.Config(weight=10.0, augment=NONE).build(inputs, codec)
    steps = moved(codec, [term], steps=60)
    alike = [s.metrics["contrast"] for s in steps]
    assert sum(alike[-5:]) / 5 < sum(alike[:5]) / 5 - 0.1


def test_contrast_resumes_with_its_rival():
    inputs = small()
    codec = Haba.Config().fit(Budget(ipc=6), SPEC).build(SPEC, torch.Generator().manual_seed(0))
    term = Contrast.Config().build(inputs, codec)
    state = term.state()
    other = Contrast.Config().build(inputs, codec)
    with torch.no_grad():
        other.rival.zero_()
    other.load(state)
    assert torch.equal(other.rival, term.rival)


def test_supervised_contrast_by_hand():
    e = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    label = torch.tensor([0, 0, 1, 1, 1, 2])
    total, rows = 0.0, 0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        positives = [j for j in others if label[j] == label[i]]
        if positives:
            scale = torch.logsumexp(torch.stack([e[i] @ e[j] / 0.07 for j in others]), 0)
            total -= float(sum(e[i] @ e[j] / 0.07 - scale for j in positives) / len(positives))
            rows += 1
    assert float(supervised_contrast(e, label, 0.07)) == pytest.approx(total / rows, rel=1e-4)


def test_refusals():
    inputs = small()
    pixel = Pixel.Config().fit(Budget(ipc=1), SPEC).build(SPEC, torch.Generator().manual_seed(0))
    with pytest.raises(Refused, match="codec=haba"):
        Contrast.Config().build(inputs, pixel)
    with pytest.raises(Refused, match="weight"):
        Guidance.Config(weight=-1.0)
    with pytest.raises(Refused, match="batch"):
        Contrast.Config(batch=0)
