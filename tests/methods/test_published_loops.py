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
from rayd.distill.inputs import ResidentInputs
from rayd.distill.loop import Distillation
from rayd.experts.trajectory import Segment
from rayd.methods.mtt import FLOOR, Mtt
from rayd.nets.convnet import Net, NetConfig
from rayd.seeds import generator

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "preset"
STEPS = 40
CLASSES, IMAGES = 4, 400
BATCH, RATE = 8, 0.03
"""Of the experts: two epochs are 100 steps, three units of step size; of a full-size MTT expert they are 3.5."""
SIDES = {64: 16, 128: 32}
MOST = 16
"""Images of an inner batch."""


def names() -> list[str]:
    files = sorted(PRESETS.rglob("[!_]*.yaml"))
    return [str(path.relative_to(PRESETS).with_suffix("")) for path in files if "objective" not in path.name]


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


def shrunk(run: Run) -> Distillation:
    """The run's method on small images of few classes, at up to 5 images a class."""
    side = SIDES.get({"tiny": 64, "imagenette": 128, "imagenette128": 128}.get(run.data.name, 32), 16)
    net, space, images, rows = surroundings(side, run.transform)
    inputs = ResidentInputs(net, space, images, torch.device("cpu"), 0, compiled=False, buffer=rows)
    method = run.method
    config = replace(method.codec, **{name: None for name in ("rank", "sharing") if getattr(method.codec, name)})
    codec = config.fit(Budget(ipc=4), images.spec).build(images.spec, generator(0, "codec"))
    end = rows.row(0, method.objective.last_epoch)

    @torch.no_grad()
    def teacher(x: Tensor) -> Tensor:
        return net(end, x)

    codec.encode(inputs.start_images(0, teacher if config.start == "confident" else None), generator(0, "encode"))
    if codec.learns_labels:
        codec.teach(teacher)
    terms = [term.build(inputs, codec) for term in method.terms]
    objective = replace(method.objective, batch=min(method.objective.batch or MOST, MOST)).build(inputs)
    return Distillation(codec, objective, terms, steps=STEPS, optimiser=method.optimiser, inputs=inputs, guard=method.guard)


def learn(name: str) -> tuple[list[float], list[float]]:
    """Loss and step size of every step."""
    work = shrunk(composed(name))
    losses, sizes = [], []
    for step in work.run():
        losses.append(step.value)
        sizes.append(work.objective.step_size())
    return losses, sizes


if __name__ == "__main__":
    import sys, time
    torch.set_num_threads(1)
    for name in sys.argv[1:] or names():
        if not isinstance(composed(name).method.objective, Mtt.Config): continue
        t = time.process_time()
        try:
            l, s = learn(name)
            print(f"{name:28s} loss {sum(l[:5])/5:.3f} -> {sum(l[-5:])/5:.3f} ({sum(l[-5:])/sum(l[:5]):.2f}) size {s[0]:.4f} -> {s[-1]:.4f} min {min(s):.4f}  {time.process_time()-t:.0f}s", flush=True)
        except Exception as e: print(name, type(e).__name__, str(e)[:200], flush=True)
