"""Decoupled synthesis: the moved teacher, independent blocks, workers, resume, labels, refusals."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.data.images import Spec
from rayd.distill.budget import Budget
from rayd.distill.contract import Item
from rayd.distill.loop import Distillation, OptimiserConfig, identity
from rayd.errors import Refused
from rayd.methods.dwa import Dwa, class_runs
from rayd.methods.pixel import Pixel
from rayd.nets.convnet import NetConfig
from tests.support.grounds import descendants, until
from tests.support.runs import small_run
from tests.support.workers import run_workers
from tests.support.worlds import TinyPixels, TinyWorld

STEPS = 4


def inputs(norm: Any = "batch") -> TinyWorld:
    return TinyWorld(config=NetConfig(depth=2, width=8, norm=norm))


def run(share: tuple[int, int] = (0, 1), reduce: Any = identity, **config: Any) -> Distillation:
    place = inputs()
    codec = TinyPixels(place, 2, lambda c, n: place.take(c, n))
    objective = Dwa.Config(**{"blocks": 2, "rho": 0.5, **config}).build(place)
    optimiser = OptimiserConfig(name="adam", lr=0.1, decay="cosine")
    return Distillation(
        codec, objective, [], steps=STEPS, optimiser=optimiser, inputs=place, share=share, reduce=reduce
    )


def pixels(work: Distillation) -> Tensor:
    return work.codec.pixels.detach()  # type: ignore[union-attr,return-value]


def test_the_teacher_is_moved_within_rho_raises_the_loss_and_stays_itself() -> None:
    work = run()
    objective: Dwa = work.objective  # type: ignore[assignment]
    before = objective.teacher_P.clone()
    for _ in work.run():
        pass
    assert torch.equal(objective.teacher_P, before), "the squeezed teacher is bit-identical"
    assert torch.equal(before, objective.inputs.theta(0, objective.inputs.last_epoch))
    net, moved = objective.inputs.net, objective._moved
    assert set(moved) == {0, 1}
    assert not torch.equal(moved[0], moved[1])
    for number, theta in moved.items():
        assert 0.1 < float((theta - before).norm()) <= 0.5 + 1e-4
        assert torch.equal(theta[net.trainable :], before[net.trainable :])
        item = objective.plan(0)[number]
        assert objective.start_NCHW is not None
        views = objective.view(objective.start_NCHW[objective.index(work.codec, item)], item)
        classes = torch.arange(4)
        assert float(F.cross_entropy(net(theta, views), classes)) > float(F.cross_entropy(net(before, views), classes))


def test_the_loss_is_the_published_one() -> None:
    """Against a plain computation from the network's own moments."""
    objective: Dwa = run(jitter=0, ascents=0).objective  # type: ignore[assignment]
    codec = TinyPixels(objective.inputs, 2)  # type: ignore[arg-type]
    item = objective.plan(0)[1]
    value = objective(codec, item, None).value
    images = codec.decode(objective.index(codec, item))[0]
    logits, seen = objective.inputs.net.moments(objective.teacher_P, images)
    expected = F.cross_entropy(logits, torch.arange(4))
    for i, one in enumerate(seen):
        gap = 11 * (one.var_C - one.running_var_C).norm() + (one.mean_C - one.running_mean_C).norm()
        expected = expected + 0.01 * (10 if i == 0 else 1) * gap
    assert float((value - expected).detach().abs()) < 1e-4


def test_workers_share_blocks_and_agree_to_the_bit() -> None:
    alone = run()
    list(alone.run())
    for size in (2, 4):
        workers, _ = run_workers(size, lambda share, reduce: run(share, reduce, classes_per_item=2))
        reference = run(classes_per_item=2)
        list(reference.run())
        assert all(torch.equal(pixels(one), pixels(reference)) for one in workers)


def test_a_block_alone_is_the_block_among_others() -> None:
    whole, start = run(), run()
    list(whole.run())
    for number in (0, 1):
        single = run(only=number)
        list(single.run())
        index = torch.arange(len(single.codec)).view(4, 2)[:, number]
        rest = torch.arange(len(single.codec)).view(4, 2)[:, 1 - number]
        assert torch.equal(pixels(single)[index], pixels(whole)[index])
        assert torch.equal(pixels(single)[rest], pixels(start)[rest])


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    whole, first, second = run(), run(), run()
    list(whole.run())
    steps = first.run()
    next(steps), next(steps)
    state = first.checkpoint()
    steps.close()
    second.load(state)
    list(second.run())
    assert torch.equal(pixels(second), pixels(whole))


def test_images_follow_the_teacher() -> None:
    """The statistics of noise come closer to what the teacher remembers."""
    place = inputs()
    objective = Dwa.Config(blocks=2, ascents=0).build(place)
    codec = TinyPixels(place, 2)
    work = Distillation(codec, objective, [], steps=25, optimiser=OptimiserConfig(lr=0.1), inputs=place)
    values = [step.metrics["bn"] for step in work.run()]
    assert values[-1] < 0.7 * values[0]


def test_labels_are_asked_of_the_teacher_or_kept() -> None:
    place = inputs()
    spec = Spec(place.shape, place.classes)
    config = Pixel.Config(labels="soft").fit(Budget(floats=2 * 4 * (spec.floats + 4) + 1), spec)
    codec = config.build(spec, torch.Generator().manual_seed(0))
    codec.encode(place.take, torch.Generator().manual_seed(0))
    before = codec.labels.detach().clone()
    kept = Dwa.Config(blocks=2, relabel=2).build(place)
    asked = Dwa.Config(blocks=2).build(place)
    assert kept.stored() == {} and asked.stored()["teacher"].role == "teacher"
    work = Distillation(codec, kept, [], steps=2, optimiser=OptimiserConfig(lr=0.1), inputs=place)
    steps = work.run()
    next(steps)
    assert torch.equal(codec.labels.detach(), before), "labels get no gradient"
    next(steps)
    logits = kept.predict(codec.images(torch.arange(len(codec))))
    right = logits.argmax(1) == torch.arange(len(codec)) % 4
    centred = logits - logits.mean(1, keepdim=True)
    assert torch.allclose(codec.labels[right], centred[right], atol=1e-5)
    with pytest.raises(Refused, match=r"objective\.relabel=0"):
        asked(codec, asked.plan(0)[0], None)


def asked(tmp_path: Path, name: str, **method: Any) -> Any:
    """Two blocks on digits as a run of its own; all share one teacher."""
    plain: dict[str, Any] = {
        "data": {"name": "digits", "limit": 200, "val": 50},
        "net": {"width": 4, "norm": "batch"},
        "expert": {"experts": 1, "epochs": 2, "batch": 64, "precision": "fp32", "compiled": False, "keep": "ends"},
        "recipe": {"steps": 5, "seeds": 1},
        "method": {
            "codec": {"name": "pixel", "clamp": True}, "objective": {"name": "dwa", "blocks": 2, "jitter": 1},
            "steps": 5, "checkpoint": 2, "compiled": False, "optimiser": {"lr": 0.1, "decay": "cosine"}, **method,
        },
        "budget": {"ipc": 2}, "buffer": str(tmp_path / "experts"), "scale": {"name": "laptop"},
    }  # fmt: skip
    return small_run(**plain, out=str(tmp_path / name))


@pytest.mark.ray
def test_blocks_over_the_fleet_are_one_run(tmp_path: Path, ray_local: None) -> None:
    """Independent tasks, one of them interrupted before, against all blocks in this process: the same files' pixels."""
    from rayd import load
    from rayd.fleet.distill_blocks import block_runs, distill_blocks
    from rayd.run.distill import distill
    from rayd.run.experts import ExpertPlan, build

    one, many = asked(tmp_path, "one"), asked(tmp_path, "many")
    list(build(ExpertPlan.open(one)))
    list(distill(one))
    blocks = block_runs(many)
    assert len(blocks) == 2
    walk = distill(blocks[1])
    for _ in range(3):
        next(walk)
    walk.close()
    distill_blocks(many, blocks)
    a, b = (load(tmp_path / name / "artifact") for name in ("one", "many"))
    assert torch.equal(a.codec.pixels, b.codec.pixels)
    assert a.card["fingerprint"] == b.card["fingerprint"]
    assert torch.equal(a.stored["teacher"].tensor, b.stored["teacher"].tensor)
    with pytest.raises(Refused, match="pixel, whose blocks share nothing"):
        block_runs(asked(tmp_path, "no", codec={"name": "lodc"}))


@pytest.mark.ray
def test_a_killed_worker_costs_no_image(tmp_path: Path, ray_local: None) -> None:
    from rayd import load
    from rayd.fleet.distill_blocks import block_runs, distill_blocks
    from rayd.run.distill import distill
    from rayd.run.experts import ExpertPlan, build

    one, many = (asked(tmp_path, name, steps=300, checkpoint=20) for name in ("one", "many"))
    list(build(ExpertPlan.open(one)))
    list(distill(one))
    killed: list[int] = []

    def kill() -> None:
        until(lambda: any((tmp_path / "many/blocks").glob("*/checkpoints/step-*.json")))
        killed.append(next(pid for pid, title in descendants(os.getpid()) if title.startswith("ray::_call")))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    distill_blocks(many, block_runs(many))
    killer.join()
    a, b = (load(tmp_path / name / "artifact").codec.pixels for name in ("one", "many"))
    assert killed and torch.equal(a, b)


def test_class_runs_cover_all() -> None:
    assert class_runs(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert class_runs(10, 0) == [(0, 10)]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(Refused, match=r"net\.norm=instance"):
        Dwa.Config().build(inputs("instance"))
    with pytest.raises(Refused, match=r"objective\.expert=9"):
        Dwa.Config(expert=9).build(inputs())
    with pytest.raises(Refused, match=r"objective\.only=7"):
        Dwa.Config(blocks=2, only=7).build(inputs())
    with pytest.raises(Refused, match=r"objective\.rho=-1"):
        Dwa.Config(rho=-1)
    place = inputs()
    objective = Dwa.Config(blocks=3).build(place)
    with pytest.raises(Refused, match=r"objective\.blocks=3.*here \[2\]"):
        objective(TinyPixels(place, 2), Item(0, 0, 0, {"block": 0, "first": 0, "last": 4}), None)
