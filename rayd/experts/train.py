"""Experts: networks trained plainly on the real images, whose parameters at the end of every epoch are what is matched.

`train` is a generator of Snapshots for the experts of one shard, on one device: images stay there as uint8 and are
augmented in batches. On a GPU the experts advance together, stacked under vmap; on a CPU one after another, compiled,
in bf16 and channels-last. Plain SGD as in the papers' buffers (MTT: lr 0.01, batch 256, no momentum), with momentum,
weight decay and schedules for teachers and pools, and the sharpness-aware steps of FTD and DATM.

Shapes: K experts at once, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rayd.data.images import Images
from rayd.data.transform import Transform
from rayd.errors import Failed
from rayd.experts.config import ExpertConfig
from rayd.experts.step import ExpertStep
from rayd.experts.trajectory import Snapshot
from rayd.nets.convnet import Net
from rayd.seeds import generator


class Diverged(Failed):
    """Training left the numbers; `numbers` says where."""

    def __init__(self, expert: int, epoch: int, losses: Sequence[float]) -> None:
        shown = [loss if math.isfinite(loss) else None for loss in losses]
        said = ", ".join(f"{loss:.3g}" for loss in losses)
        super().__init__(
            f"expert {expert} diverged in epoch {epoch} (losses {said}); no other seed is tried: lower expert.lr"
        )
        self.numbers: dict[str, Any] = {"expert": expert, "epoch": epoch, "losses": shown}


def train(
    config: ExpertConfig,
    net: Net,
    transform: Transform,
    images: Images,
    seeds: Sequence[int],
    *,
    epochs: int | None = None,
    experts: Sequence[int] | None = None,
    val: Images | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Snapshot]:
    """Snapshots 0 to `epochs` of one expert per seed. On a CPU an expert is finished before the next begins."""
    device = torch.device(device)
    numbers = list(experts if experts is not None else range(len(seeds)))
    stacked = config.stacks(device.type)
    step = ExpertStep(config, net, transform.to(device), images, val, device, stacked)
    places = [list(range(len(seeds)))] if stacked else [[place] for place in range(len(seeds))]
    for group in places:
        yield from _advance(
            step, [seeds[i] for i in group], [numbers[i] for i in group], config.epochs if epochs is None else epochs
        )


def _advance(step: ExpertStep, seeds: Sequence[int], numbers: Sequence[int], epochs: int) -> Iterator[Snapshot]:
    """The experts of one group, side by side."""
    config, net = step.config, step.net
    theta_KP = torch.stack([net.init(generator(seed, "init")) for seed in seeds]).to(step.device)
    velocity_KP = torch.zeros_like(theta_KP) if config.momentum else None
    history: list[list[float]] = [[] for _ in seeds]
    for epoch in range(epochs + 1):
        if epoch:
            losses_K = torch.zeros(len(seeds), device=step.device)
            count = 0
            for x, y_KB in step.batches(seeds, epoch):
                losses_K += step.step(theta_KP, velocity_KP, x, y_KB, config.rate(epoch)) * y_KB.shape[1]
                count += y_KB.shape[1]
            finite_K = theta_KP.isfinite().all(1)
            for k, loss in enumerate((losses_K / count).tolist()):
                history[k].append(loss)
                if not (math.isfinite(loss) and bool(finite_K[k])):
                    raise Diverged(numbers[k], epoch, history[k])
        accuracies = step.accuracies(theta_KP)
        for k, number in enumerate(numbers):
            metrics = {"train_loss": history[k][-1]} if epoch else {}
            if accuracies is not None:
                metrics["val_accuracy"] = accuracies[k]
            yield Snapshot(number, epoch, theta_KP[k].detach().to("cpu", copy=True), metrics)
