"""The one loop: workers, resume, the guard."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rayd.data.augment import AugmentConfig
from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.distill.budget import Budget
from rayd.distill.contract import OptimiserConfig, Player
from rayd.distill.guard import GuardConfig
from rayd.distill.loop import Distillation, Reduce, Step, identity, make_optimiser
from rayd.errors import Failed, Refused
from rayd.methods.mtt import Mtt
from rayd.methods.pixel import Pixel
from rayd.nets.convnet import NetConfig
from rayd.seeds import generator
from tests.support.workers import run_workers
from tests.support.worlds import TinyWorld, tiny

SPEC = Spec((3, 8, 8), 3)


def walks(**changes: Any) -> TinyWorld:
    """Three classes, a small network, experts of four epochs."""
    return TinyWorld(**{"classes": 3, "config": NetConfig(depth=2, width=4), "last_epoch": 4, **changes})


def make(
    share: tuple[int, int] = (0, 1),
    reduce: Reduce = identity,
    *,
    steps: int = 6,
    inputs: TinyWorld | None = None,
    guard: GuardConfig | None = None,
    ema: float = 0.0,
    **objective: object,
) -> Distillation:
    inputs = inputs or walks()
    codec = Pixel.Config(labels="soft").fit(Budget(ipc=2.1), inputs.spec).build(inputs.spec, generator(0, "codec"))
    config = Mtt.Config(
        **({"inner_steps": 2, "batch": 4, "last": 2, "items": 4, "augment": AugmentConfig(ops=("flip",))} | objective)
    )  # type: ignore[arg-type]
    return Distillation(
        codec,
        config.build(inputs),
        [],
        steps=steps,
        optimiser=OptimiserConfig(lr=0.05),
        inputs=inputs,
        guard=guard,
        ema=ema,
        share=share,
        reduce=reduce,
    )


def flat(distillation: Distillation) -> Tensor:
    return torch.cat([p.detach().flatten() for player in distillation.players for p in player.params])


def test_the_result_does_not_depend_on_the_number_of_workers() -> None:
    alone = make(steps=50)
    list(alone.run())
    for size in (2, 4):
        workers, steps = run_workers(size, lambda share, reduce: make(share, reduce, steps=50))
        assert len(steps) == 50
        for worker in workers:
            assert torch.equal(flat(worker), flat(workers[0]))
        assert (flat(workers[0]) - flat(alone)).norm() <= 1e-4 * flat(alone).norm()


def test_a_step_sends_the_gradients_of_all_players_in_double_and_three_numbers() -> None:
    sent: list[int] = []

    def count(vector: Tensor) -> Tensor:
        sent.append(vector.numel() * vector.element_size())
        return vector

    distillation = make(reduce=count)
    list(distillation.run())
    assert sent == [8 * (len(flat(distillation)) + 3)] * 6


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_resumed_equals_uninterrupted(optimiser: str) -> None:
    def fresh() -> Distillation:
        distillation = make(ema=0.9)
        distillation = Distillation(
            distillation.codec,
            distillation.objective,
            [],
            steps=6,
            inputs=distillation.inputs,
            ema=0.9,
            optimiser=OptimiserConfig(name=optimiser, lr=0.05, decay="cosine"),
        )
        return distillation

    whole = fresh()
    list(whole.run())
    first = fresh()
    for step in first.run():
        if step.number == 3:
            break
    second = fresh()
    second.load({k: v.clone() for k, v in first.checkpoint().items()})
    list(second.run())
    states = whole.state(), second.state()
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name


def test_an_exploding_step_size_ends_with_a_diagnosis_and_the_last_good_state() -> None:
    distillation = make(step_size=1e3, steps=20)
    before = flat(distillation).clone()
    with pytest.raises(Failed, match="step_size"):
        list(distillation.run())
    assert torch.isfinite(flat(distillation)).all()
    assert torch.equal(flat(distillation)[:-1], before[:-1])


def test_a_row_that_is_not_finite_is_named() -> None:
    with pytest.raises(Failed, match="verify=true"):
        list(make(inputs=walks(spoiled=True)).run())


def test_items_above_the_threshold_are_left_out_and_end_the_run() -> None:
    distillation = make(skip_above=1e-9, steps=100, guard=GuardConfig(patience=6))
    before = flat(distillation).clone()
    steps: list[Step] = []
    with pytest.raises(Failed, match=r"step 6: nothing was learned in 6 steps.*skip_above"):
        steps.extend(distillation.run())
    assert len(steps) == 5
    assert all(step.skipped and step.metrics["items_skipped"] == 4 for step in steps)
    assert torch.equal(flat(distillation), before)


def test_a_gradient_that_is_gone_ends_the_run() -> None:
    """A step size at which nothing in the inner loop moves: the images get no gradient, and the loss stays 1."""
    distillation = make(steps=100, guard=GuardConfig(patience=4), learn_step=False)
    steps: list[Step] = []
    with pytest.raises(Failed, match=r"step 7: nothing was learned in 4 steps.*gradient of the codec.*step_size"):
        for step in distillation.run():
            steps.append(step)
            if step.number == 3:
                with torch.no_grad():
                    distillation.objective.step.fill_(1e-12)  # type: ignore[union-attr, operator]
    assert len(steps) == 6


def test_a_step_size_that_stays_at_its_floor_ends_the_run_at_its_last_step() -> None:
    """Not before: published runs lie there for a while, and their images get better."""
    distillation = make(steps=12, guard=GuardConfig(patience=4))
    with pytest.raises(Failed, match=r"step 12: nothing was learned in the last 1[12] steps: .* at its floor of 0.001"):
        for _ in distillation.run():
            with torch.no_grad():
                distillation.objective.step.fill_(1e-3)  # type: ignore[union-attr, operator]


def test_a_run_shorter_than_the_patience_ends_too() -> None:
    with pytest.raises(Failed, match="nothing was learned in 6 steps"):
        list(make(skip_above=1e-9, steps=6).run())


def test_a_players_own_optimiser_inherits_nothing() -> None:
    run = OptimiserConfig(name="adamw", lr=0.3, momentum=0.9, weight_decay=0.1, decay="cosine")
    own = OptimiserConfig(name="sgd", lr=1e-5)
    leaf = torch.zeros(2, requires_grad=True)
    (group,) = make_optimiser(Player("step_size", (leaf,), optimiser=own), run, unit=0.5).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-5, 0.5, 0.0)
    (group,) = make_optimiser(Player("labels", (leaf,)), run, unit=0.5).param_groups
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.1)


def test_one_rate_moves_whitened_and_normalised_pixels_alike() -> None:
    """Adam's in the unit of the space, SGD's as published."""
    leaf = torch.zeros(2, requires_grad=True)
    player = Player("core", (leaf,), scale=2.0)
    for name, lr in (("adam", 0.3 * 2 * 0.25), ("adamw", 0.3 * 2 * 0.25), ("sgd", 0.3 * 4)):
        (group,) = make_optimiser(player, OptimiserConfig(name=name, lr=0.3), unit=0.25).param_groups  # type: ignore[arg-type]
        assert group["lr"] == pytest.approx(lr)


def test_the_unit_of_a_space_is_the_spread_of_its_pixels() -> None:
    images = tiny(n=300, size=6, channels=3)
    for kind in ("zca", "normalise"):
        space = Transform.fit(images, kind)  # type: ignore[arg-type]
        pixels_ND = space(images.pixels_NCHW).flatten(1)
        spread = (pixels_ND - pixels_ND.mean(0 if kind == "zca" else None)).square().mean().sqrt()
        assert space.unit == pytest.approx(float(spread), rel=0.01), kind
    assert Transform.fit(images, "zca").unit < 0.8


def test_the_rate_falls_on_a_plateau_and_for_its_own_players_alone() -> None:
    distillation = make(steps=3)
    distillation.optimiser = OptimiserConfig(lr=0.05, decay="plateau")
    distillation.record = replace(distillation.record, factor=0.5)
    next(distillation.run())
    rates = {
        p.name: o.param_groups[0]["lr"] for p, o in zip(distillation.players, distillation.optimisers, strict=True)
    }
    assert rates == {"pixels": pytest.approx(0.025), "labels": pytest.approx(0.025), "step_size": 1e-5}


def test_datm_window_grows() -> None:
    objective = make(last=4, grow_from=1, grow_steps=6, inputs=walks(last_epoch=8)).objective
    assert isinstance(objective, Mtt)
    assert [objective.ceiling(step) for step in (0, 2, 4, 6, 100)] == [1, 2, 3, 4, 4]
    starts = {item.what["first"] for step in range(40) for item in objective.plan(step)}
    assert starts == {0, 1, 2, 3}


def test_a_window_past_the_buffer_is_refused_before_any_work() -> None:
    with pytest.raises(Refused, match=r"objective\.last"):
        make(last=5)
