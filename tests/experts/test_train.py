from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rayd.data.config import DataConfig
from rayd.data.images import Images, Splits
from rayd.data.load import load as load_data
from rayd.data.transform import Transform
from rayd.errors import Refused
from rayd.experts.config import ExpertConfig, plan_units
from rayd.experts.train import Diverged, ExpertStep, chunk_of, loss_gradient, train
from rayd.experts.trajectory import Snapshot
from rayd.nets.convnet import Net, NetConfig
from rayd.seeds import generator

PLAIN: dict[str, Any] = {"lr": 0.05, "batch": 64, "precision": "fp32", "compiled": False}


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_data(DataConfig(name="digits"))


@pytest.fixture(scope="module")
def few(digits: Splits) -> Images:
    """200 images: three batches of 64, and one of 8."""
    return digits.train.select(torch.arange(200))


def net_of(digits: Splits, norm: Any = "instance", width: int = 8) -> Net:
    return NetConfig(depth=2, width=width, norm=norm).build(digits.train.spec)


def run(digits: Splits, images: Images, net: Net, seeds: list[int], last: int = 2, **config: Any) -> list[Snapshot]:
    transform = Transform.fit(digits.train, "normalise")
    whole = ExpertConfig(**{**PLAIN, **config})
    return list(train(whole, net, transform, images, seeds, epochs=last, val=digits.val))


def test_snapshot_0_is_the_initialisation_and_snapshots_are_copies(digits: Splits, few: Images) -> None:
    net = net_of(digits)
    snapshots = run(digits, few, net, [7])
    assert [snapshot.epoch for snapshot in snapshots] == [0, 1, 2]
    assert torch.equal(snapshots[0].theta_P, net.init(generator(7, "init")))
    distances = [float((one.theta_P - snapshots[0].theta_P).norm()) for one in snapshots]
    assert distances[0] == 0 < distances[1] < distances[2]
    assert "train_loss" not in snapshots[0].metrics and snapshots[2].metrics["train_loss"] > 0


def test_experts_learn(digits: Splits) -> None:
    last = run(digits, digits.train, net_of(digits, width=16), [1], last=4, lr=0.1)[-1]
    assert last.metrics["val_accuracy"] > 0.6


def test_an_expert_is_the_same_whatever_its_company(digits: Splits, few: Images) -> None:
    net = net_of(digits)
    alone = run(digits, few, net, [2])
    beside = run(digits, few, net, [1, 2])
    assert [one.expert for one in beside] == [0, 0, 0, 1, 1, 1]
    for one, other in zip(alone, beside[3:], strict=True):
        assert torch.equal(one.theta_P, other.theta_P)
    again = run(digits, few, net, [2])
    assert all(torch.equal(one.theta_P, other.theta_P) for one, other in zip(alone, again, strict=True))


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("extra", [{}, {"momentum": 0.9, "weight_decay": 1e-3}, {"sam": 0.05}], ids=str)
def test_stacked_experts_equal_single_ones(digits: Splits, few: Images, norm: str, extra: dict[str, Any]) -> None:
    net = net_of(digits, norm)
    single = run(digits, few, net, [1, 2], engine="single", **extra)
    stacked = run(digits, few, net, [1, 2], engine="stacked", **extra)
    theirs = {(one.expert, one.epoch): one.theta_P for one in stacked}
    for one in single:
        torch.testing.assert_close(one.theta_P, theirs[one.expert, one.epoch], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("last_batch", ["keep", "drop"])
def test_the_loop_is_plain_sgd(digits: Splits, few: Images, last_batch: str) -> None:
    """Against torch's own modules of the same arithmetic: autograd and torch.optim over the planned batches."""
    net, transform = net_of(digits), Transform.fit(digits.train, "normalise")
    extra = {"momentum": 0.9, "weight_decay": 1e-3, "schedule": "cosine", "epochs": 3}
    extra |= {"last_batch": last_batch}
    ours = run(digits, few, net, [5], **extra)
    config = ExpertConfig(**{**PLAIN, **extra})  # type: ignore[arg-type]
    theta = net.init(generator(5, "init")).requires_grad_()
    optimiser = torch.optim.SGD([theta], lr=config.lr, momentum=0.9, weight_decay=1e-3)
    augment = config.augment.build()
    for epoch in (1, 2):
        optimiser.param_groups[0]["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / 3))
        order, rng = torch.randperm(200, generator=generator(5, "order", epoch)), generator(5, "augment", epoch)
        for index in (order if last_batch == "keep" else order[:192]).split(64):
            x = transform(few.pixels_NCHW[index])
            x = augment(x, augment.draw(rng, len(index), tuple(x.shape[1:])))
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(theta, x), few.labels_N[index]).backward()
            optimiser.step()
        torch.testing.assert_close(ours[epoch].theta_P, theta.detach(), rtol=1e-4, atol=1e-5)


def test_batch_norm_remembers_what_it_saw(digits: Splits, few: Images) -> None:
    net = net_of(digits, "batch")
    first, *_, last = run(digits, digits.train, net, [1], precision="bf16", last=3)
    before, after = (net.flat.split(one.theta_P) for one in (first, last))
    assert torch.equal(before["norm0.mean"], torch.zeros(8)) and torch.equal(before["norm0.var"], torch.ones(8))
    assert not torch.equal(after["norm0.mean"], before["norm0.mean"])
    assert last.metrics["val_accuracy"] > first.metrics["val_accuracy"]


def test_the_sharpness_aware_gradient(digits: Splits, few: Images) -> None:
    """The adaptive ascent step has length rho in the norm ||e / theta||, and alpha removes what is orthogonal."""
    net = net_of(digits)
    config = ExpertConfig(**{**PLAIN, "sam": 0.1, "sam_alpha": 0.0})
    step = ExpertStep(config, net, Transform.fit(few, "normalise"), few, None, torch.device("cpu"), False)
    theta = net.init(generator(1, "init"))[None]
    x, y = next(step.batches([1], 1))
    plain = step.gradient(theta, x, y)[0]
    ascent = theta.square() * plain * (0.1 / (theta * plain).norm())
    assert math.isclose(float((ascent / theta).nan_to_num().norm()), 0.1, rel_tol=1e-4)
    expected = step.gradient(theta + ascent, x, y)[0]
    torch.testing.assert_close(step._sharpness(theta, plain, x, y), expected, rtol=1e-3, atol=1e-6)


def test_bf16_follows_fp32(digits: Splits) -> None:
    net = net_of(digits, width=16)
    exact, close = (run(digits, digits.train, net, [1], last=3, precision=p)[-1] for p in ("fp32", "bf16"))
    moved = (exact.theta_P - net.init(generator(1, "init"))).norm()
    assert (exact.theta_P - close.theta_P).norm() < 0.05 * moved


def test_the_compiled_step_equals_the_plain_one(digits: Splits, few: Images) -> None:
    net = NetConfig(depth=1, width=4).build(digits.train.spec)
    theta, x = net.init(generator(0, "init")), Transform.fit(few, "normalise")(few.pixels_NCHW[:16])
    gradient = loss_gradient(net, torch.float32)
    compiled = torch.compile(gradient, dynamic=False, fullgraph=True)
    torch.testing.assert_close(
        compiled(theta, x, few.labels_N[:16])[0], gradient(theta, x, few.labels_N[:16])[0], rtol=1e-4, atol=1e-6
    )


def test_chunks_divide_the_batch_and_change_nothing(
    digits: Splits, few: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = net_of(digits)
    whole = run(digits, few, net, [1])
    monkeypatch.setattr("rayd.experts.train.NEAR_FLOATS", 16 * 8 * 8 * 8)
    config = ExpertConfig(**PLAIN)
    assert chunk_of(config, net, "cpu") == 16 and chunk_of(config, net_of(digits, "batch"), "cpu") == 64
    parts = run(digits, few, net, [1])
    torch.testing.assert_close(parts[-1].theta_P, whole[-1].theta_P, rtol=1e-4, atol=1e-6)


def test_divergence_says_where(digits: Splits, few: Images) -> None:
    with pytest.raises(Diverged, match="expert 0 diverged in epoch 1") as caught:
        run(digits, few, net_of(digits, "none"), [1], lr=1e6)
    assert caught.value.numbers["expert"] == 0 and caught.value.numbers["epoch"] == 1


def test_a_kept_last_batch_shows_every_image_once(digits: Splits, few: Images) -> None:
    labels: dict[str, list[list[int]]] = {}
    for last_batch in ("keep", "drop"):
        config = ExpertConfig(**{**PLAIN, "last_batch": last_batch})
        step = ExpertStep(
            config, net_of(digits), Transform.fit(few, "normalise"), few, None, torch.device("cpu"), False
        )
        labels[last_batch] = [sorted(torch.cat([y[0] for _, y in step.batches([3], e)]).tolist()) for e in (1, 2)]
    assert labels["keep"] == [sorted(few.labels_N.tolist())] * 2
    assert [len(epoch) for epoch in labels["drop"]] == [192, 192]
    assert ExpertConfig().recipe() != ExpertConfig(last_batch="drop").recipe()


def test_snapshots_are_scored_on_images_of_every_class(digits: Splits, few: Images) -> None:
    """The validation images of a folder lie class after class; the first of them would be of one class."""
    in_order = digits.val.select(digits.val.labels_N.argsort(stable=True))
    config = ExpertConfig(**{**PLAIN, "check": 20})
    transform = Transform.fit(few, "normalise")
    step = ExpertStep(config, net_of(digits), transform, few, in_order, torch.device("cpu"), False)
    assert step.val is not None and len(step.val) == 20
    assert set(step.val.labels_N.tolist()) == set(range(10))


def test_a_teacher_is_trained_to_the_end() -> None:
    config = ExpertConfig(epochs=9)
    assert config.kept(3, teacher=True) == (0, 1, 2, 3, 9)
    assert config.kept(9, teacher=True) == config.kept(9) == tuple(range(10))
    assert ExpertConfig(epochs=9, keep="all").kept(3, teacher=True) == tuple(range(10))
    assert ExpertConfig(epochs=9, keep="ends").kept(3, teacher=True) == (0, 9)
    assert plan_units(config, 0, 3, teacher=True)[0].epochs == (0, 1, 2, 3, 9)


def test_rates_drop_where_the_papers_drop_theirs() -> None:
    """2 * epochs // 3 and 5 * epochs // 6, in the code that NCFM's pool is trained by."""
    for epochs in (60, 80, 90):
        step = ExpertConfig(schedule="step", drops=(0.6667, 0.8333), gamma=0.5, epochs=epochs, lr=1.0)
        rates = [step.rate(epoch) for epoch in range(1, epochs + 1)]
        assert (rates.count(1.0), rates.count(0.5)) == (2 * epochs // 3, 5 * epochs // 6 - 2 * epochs // 3)


def test_units_are_named_before_they_run() -> None:
    config = ExpertConfig(experts=5, per_shard=2, epochs=50)
    units = plan_units(config, seed=3, last_epoch=3)
    assert [unit.experts for unit in units] == [(0, 1), (2, 3), (4,)]
    assert units[1].name == "experts-00001" and units[1].keys == ("expert-000002", "expert-000003")
    assert units[0].epochs == (0, 1, 2, 3)
    longer = plan_units(ExpertConfig(experts=9, per_shard=2, epochs=50), seed=3, last_epoch=9)
    assert [unit.seeds for unit in longer[:2]] == [unit.seeds for unit in units[:2]]
    assert plan_units(config, seed=4)[0].seeds != units[0].seeds
    assert plan_units(ExpertConfig(epochs=9, keep="ends"), 0, 3)[0].epochs == (0, 9)
    assert plan_units(ExpertConfig(epochs=3, keep="all"), 0, 1)[0].epochs == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("given", "says"),
    [({"lr": 0}, "expert.lr"), ({"momentum": 1.0}, "expert.momentum"), ({"max_failed": 2}, "expert.max_failed")],
)
def test_illegal_settings_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused, match=says):
        ExpertConfig(**given)


def test_a_window_beyond_the_training_is_refused() -> None:
    with pytest.raises(Refused, match=r"expert\.epochs=5: allowed is at least 9"):
        plan_units(ExpertConfig(epochs=5), 0, 9)


def test_recipes_differ_by_what_decides_the_numbers() -> None:
    assert ExpertConfig(experts=3, epochs=5).recipe() == ExpertConfig(experts=9, epochs=7).recipe()
    assert ExpertConfig(lr=0.1).recipe() != ExpertConfig(lr=0.2).recipe()
    assert ExpertConfig(schedule="cosine", epochs=5).recipe() != ExpertConfig(schedule="cosine", epochs=6).recipe()
    step = ExpertConfig(schedule="step", drops=(0.5, 0.75), gamma=0.1, epochs=4, lr=1.0)
    assert [round(step.rate(epoch), 3) for epoch in (1, 2, 3, 4)] == [1, 1, 0.1, 0.01]
