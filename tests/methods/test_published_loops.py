"""Every preset of trajectory matching learns, and its learned step size lives.

A preset is composed as it stands and shrunk in network and data only: inner steps, rates, momenta, windows and transform
are its own. Experts are trained as all of them publish it (plain SGD at 0.01), in this process.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from jobs.compose import ask
from rayd.config import Run
from rayd.data.images import Images
from rayd.data.transform import Transform
from rayd.distill.budget import Budget
from rayd.distill.inputs import RunInputs
from rayd.distill.loop import Distillation
from rayd.errors import Failed
from rayd.experts.trajectory import Segment
from rayd.methods.mtt import FLOOR, Mtt
from rayd.nets.convnet import Net, NetConfig
from rayd.seeds import generator

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "preset"
STEPS = 40
CLASSES, IMAGES = 4, 400
BATCH, RATE = 8, 0.02
"""Of the experts: two epochs are 100 steps, two units of step size; of a full-size MTT expert they are 3.5."""
SIDES = {32: 8, 64: 8, 128: 16}
"""Of the images, for those of a preset."""
MOST = 8
"""Images of an inner batch."""
LATE = 10
"""A window that begins at this epoch or later is one for a large set."""
CROWDED = {"datm/tiny_ipc1": 200}
"""Images of a published batch, where its rate moves the few of ours too far: an image's gradient is its share of the
batch, and under plain SGD at 10,000 the loss rises here from 1.06 to 1.24."""
FLOORED = {"nsd/cifar10_ipc50", "nsd/cifar100_ipc1", "nsd/cifar100_ipc10"}
"""Presets whose loss falls (6.3 to 1.0) while the step size comes to lie at its floor: a window that reaches epoch 40 asks
the small experts for steps far below the first one, and SPEED's momentum of 0.95 overshoots."""
SAMPLE = ("mtt/cifar10_ipc1", "mtt/tiny_ipc1", "haba/cifar10_ipc10", "lodc/tiny_ipc1", "ours/lss_cifar10_ipc10")
"""A preset of each family whose steps compile within half a minute; the long rounds take every preset."""

LONG = {"datm", "nsd"}
"""Families without such a preset."""


def names() -> list[str]:
    files = sorted(PRESETS.rglob("[!_]*.yaml"))
    return [str(path.relative_to(PRESETS).with_suffix("")) for path in files]


@cache
def composed(name: str) -> Run:
    return ask("distill", (f"preset={name}",)).run


class Rows:
    """Snapshots of one expert, trained as far as anyone has asked."""

    experts = 1
    last_epoch = 1000

    def __init__(self, net: Net, pixels: Tensor, labels: Tensor) -> None:
        self.net, self.pixels, self.labels = net, pixels, labels
        self.rows = [net.init(generator(0, "expert"))]
        self.step = grad(lambda theta, x, y: F.cross_entropy(net(theta, x), y))

    def row(self, expert: int, epoch: int) -> Tensor:
        while len(self.rows) <= epoch:
            theta = self.rows[-1]
            order = torch.randperm(len(self.labels), generator=generator(0, "epoch", len(self.rows)))
            for index in order.split(BATCH):
                theta = theta - RATE * self.step(theta, self.pixels[index], self.labels[index])
            self.rows.append(theta)
        return self.rows[epoch]

    def segment(self, expert: int, first: int, last: int) -> Segment:
        return Segment(self.row(expert, first), self.row(expert, last), expert, first, last)


@cache
def surroundings(side: int, transform: str) -> tuple[Net, Transform, Images, Rows]:
    """Images that stay hard: weak patterns under noise, and every fourth label is wrong."""
    rng = generator(0, "images", side)
    labels = torch.arange(IMAGES) % CLASSES
    patterns = F.interpolate(torch.randn(CLASSES, 3, 4, 4, generator=rng), size=side, mode="bilinear")
    pixels = 128 + 30 * patterns[labels] + 40 * torch.randn(IMAGES, 3, side, side, generator=rng)
    labels = torch.where(torch.arange(IMAGES) // CLASSES % 4 == 0, (labels + 1) % CLASSES, labels)
    names = tuple("abcd")
    images = Images(pixels.clamp(0, 255).to(torch.uint8), labels, names, "hard", {"content": f"hard-{side}"})
    space = Transform.fit(images, transform)  # type: ignore[arg-type]
    net = NetConfig(depth=2, width=8).build(images.spec)
    return net, space, images, Rows(net, space(images.pixels_NCHW), images.labels_N)


def shrunk(run: Run, crowd: int = MOST) -> Distillation:
    """The run's method on small images of four classes, at four images' floats a class. `crowd`: images of the batch that
    the rate is meant for."""
    side = SIDES[{"tiny": 64, "imagenette": 128, "imagenette128": 128}.get(run.data.name, 32)]
    net, space, images, rows = surroundings(side, run.transform)
    inputs = RunInputs(net, space, images, torch.device("cpu"), 0, compiled=False, buffer=rows)
    method = run.method
    dials = {name: None for name in ("rank", "sharing") if getattr(method.codec, name)}
    config = replace(method.codec, **dials)
    codec = config.fit(Budget(ipc=4), images.spec).build(images.spec, generator(0, "codec"))
    end = rows.row(0, method.objective.last_epoch)

    @torch.no_grad()
    def teacher(x: Tensor, classes: Tensor | None = None) -> Tensor:
        return net(end, x)

    codec.encode(inputs.start_images(0, teacher if config.start == "confident" else None), generator(0, "encode"))
    if codec.learns_labels:
        codec.teach(teacher)
    terms = [term.build(inputs, codec) for term in method.terms]
    optimiser = replace(method.optimiser, lr=method.optimiser.lr * MOST / crowd)
    objective = replace(method.objective, batch=min(method.objective.batch or MOST, MOST)).build(inputs)
    return Distillation(codec, objective, terms, steps=STEPS, optimiser=optimiser, inputs=inputs, guard=method.guard)


@torch.no_grad()
def loss(work: Distillation) -> float:
    """Of the items that the first steps plan."""
    items = [work.objective.plan(step)[0] for step in range(4)]
    values = [work.objective(work.codec, item, work.objective.fetch(item)).value for item in items]
    return float(sum(values)) / len(values)


def learn(name: str) -> tuple[float, float, float]:
    """Loss before and after, and the step size that was learned."""
    work = shrunk(composed(name), CROWDED.get(name, MOST))
    before = loss(work)
    for _ in work.run():
        pass
    return before, loss(work), work.objective.step_size() or 0.0


def matches_trajectories(name: str) -> bool:
    return isinstance(composed(name).method.objective, Mtt.Config)


def begins_late(name: str) -> bool:
    return composed(name).method.objective.first >= LATE


def learns(name: str) -> None:
    before, after, size = learn(name)
    print(f"{name}: loss {before:.3f} -> {after:.3f}, step size {size:.4f}")
    assert after <= 0.9 * before, f"loss {before:.3f} -> {after:.3f}"
    assert (size > 1.01 * FLOOR or name in FLOORED) and size < 1, f"step size {size}"


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sampled_preset_learns(name: str) -> None:
    learns(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_preset_learns(name: str) -> None:
    if not matches_trajectories(name):
        pytest.skip("no preset of trajectory matching")
    if begins_late(name):
        pytest.skip("its window begins too late for a small set")
    learns(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_a_window_too_late_for_the_set_ends_with_the_diagnosis(name: str) -> None:
    if not matches_trajectories(name) or not begins_late(name):
        pytest.skip("no preset of a late window")
    with pytest.raises(Failed, match=r"every item was above the threshold.*first, last and grow_from"):
        learn(name)


def test_the_sample_has_a_preset_of_every_family() -> None:
    first = {name.split("/")[0]: name for name in reversed(names()) if "/" in name}
    assert {family for family, name in first.items() if matches_trajectories(name)} == LONG | {
        n.split("/")[0] for n in SAMPLE
    }
