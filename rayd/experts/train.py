"""Experts: networks trained plainly on the real images; their parameters at the end of every epoch are what is matched.

`train` yields the Snapshots of the experts of one shard, trained on one device: the images stay there as uint8, or come
there in blocks of an epoch's order where they are too many, and are augmented in batches. On a GPU the experts advance
together, stacked under vmap; on a CPU one after another, compiled, in bf16 and channels-last. Plain SGD as in the papers'
buffers (MTT: lr 0.01, batch 256, no momentum), with momentum, weight decay and schedules for teachers and pools. Every
random draw comes from the expert's own generators, so an expert's numbers do not depend on its neighbours.

The sharpness-aware step of FTD and DATM (Foret et al., arXiv 2010.01412; adaptive: arXiv 2102.11600; GSAM: arXiv
2203.08065) takes the gradient at theta + rho * theta^2 g / ||theta g||, less alpha times its part orthogonal to it.

Shapes: K experts at once, B images of a batch, N images, P parameters (running statistics behind the trainable ones).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value, vmap

from rayd.data.images import Images
from rayd.data.stream import Residence, blocks, is_streamed
from rayd.data.transform import Transform
from rayd.errors import Failed
from rayd.experts.config import ExpertConfig
from rayd.experts.trajectory import Snapshot
from rayd.experts.unfinished import Unfinished
from rayd.machine import beat, compiled
from rayd.nets.convnet import Net
from rayd.nets.layers import MOMENTUM
from rayd.seeds import generator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TINY = 1e-12
NEAR_FLOATS = 2**21
"""Numbers of the widest activation of one chunk: what stays in a CPU's caches, and in memory the process keeps."""


class Diverged(Failed):
    """A loss or a parameter is not finite; `numbers` says where."""

    def __init__(self, expert: int, epoch: int, losses: Sequence[float]) -> None:
        shown = ", ".join(f"{loss:.3g}" for loss in losses)
        super().__init__(
            f"expert {expert} diverged in epoch {epoch} (losses {shown}); no other seed is tried: lower expert.lr"
        )
        finite = [loss if math.isfinite(loss) else None for loss in losses]
        self.numbers: dict[str, Any] = {"expert": expert, "epoch": epoch, "losses": finite}


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
    unfinished: Unfinished | None = None,
    residence: Residence = "auto",
) -> Iterator[Snapshot]:
    """Snapshots 0 to `epochs` of one expert per seed. On a CPU an expert is finished before the next begins.

    With `unfinished`, epochs that it holds are read instead of trained, and others are handed to it.
    """
    device = torch.device(device)
    numbers = list(experts if experts is not None else range(len(seeds)))
    stacked = config.stacks(device.type)
    step = ExpertStep(config, net, transform.to(device), images, val, device, stacked, residence)
    groups = [list(range(len(seeds)))] if stacked else [[place] for place in range(len(seeds))]
    last = config.epochs if epochs is None else epochs
    for number, group in enumerate(groups):
        group_seeds, group_numbers = [seeds[i] for i in group], [numbers[i] for i in group]
        yield from _advance(step, group_seeds, group_numbers, last, number, unfinished)


def _advance(
    step: ExpertStep,
    seeds: Sequence[int],
    numbers: Sequence[int],
    epochs: int,
    group: int,
    unfinished: Unfinished | None,
) -> Iterator[Snapshot]:
    """The experts of one group, side by side."""
    theta_KP = torch.stack([step.net.init(generator(seed, "init")) for seed in seeds]).to(step.device)
    velocity_KP = torch.zeros_like(theta_KP) if step.config.momentum else None
    losses: list[list[float]] = [[] for _ in seeds]
    first = 0
    for block in unfinished.read(group) if unfinished is not None else ():
        losses, first = block.losses, block.epochs[-1] + 1
        theta_KP = block.thetas_SKP[-1].to(step.device, copy=True)
        velocity_KP = None if block.velocity_KP is None else block.velocity_KP.to(step.device)
        for epoch, thetas_KP, accuracies in zip(block.epochs, block.thetas_SKP, block.accuracies, strict=True):
            yield from _snapshots(numbers, epoch, thetas_KP, losses, accuracies)
    for epoch in range(first, epochs + 1):
        if epoch:
            losses_K = step.epoch(theta_KP, velocity_KP, seeds, epoch)
            finite_K = theta_KP.isfinite().all(1)
            for k, loss in enumerate(losses_K.tolist()):
                losses[k].append(loss)
                if not (math.isfinite(loss) and bool(finite_K[k])):
                    raise Diverged(numbers[k], epoch, losses[k])
        accuracies, thetas_KP = step.accuracies(theta_KP), theta_KP.detach().to("cpu", copy=True)
        if unfinished is not None:
            unfinished.add(group, epoch, thetas_KP, velocity_KP, losses, accuracies)
        yield from _snapshots(numbers, epoch, thetas_KP, losses, accuracies)


def _snapshots(
    numbers: Sequence[int],
    epoch: int,
    thetas_KP: Tensor,
    losses: Sequence[Sequence[float]],
    accuracies: Sequence[float] | None,
) -> Iterator[Snapshot]:
    """Of every expert of a group, at the end of an epoch."""
    for k, number in enumerate(numbers):
        metrics = {"train_loss": losses[k][epoch - 1]} if epoch else {}
        if accuracies is not None:
            metrics["val_accuracy"] = accuracies[k]
        yield Snapshot(number, epoch, thetas_KP[k], metrics)


class ExpertStep:
    """What the experts of one shard share: resident images, compiled arithmetic, the draws of every batch."""

    def __init__(
        self,
        config: ExpertConfig,
        net: Net,
        transform: Transform,
        images: Images,
        val: Images | None,
        device: torch.device,
        stacked: bool,
        residence: Residence = "auto",
    ) -> None:
        self.config = config
        self.net = net
        self.transform = transform
        self.device = device
        self.stacked = stacked
        self.streamed = is_streamed(images.pixels_NCHW, device, residence)
        self.pixels = images.pixels_NCHW if self.streamed else images.pixels_NCHW.to(device)
        self.labels = images.labels_N.to(device)
        self.val = val.sample(config.check, 0) if val is not None and len(val) and config.check else None
        self.augment = config.augment.build()
        self.dtype = DTYPES[config.precision]
        self.batch = min(config.batch, len(self.labels))
        self.chunk = min(chunk_of(config, net, device.type), self.batch)
        over = vmap if stacked else (lambda function: function)
        self._plain_gradient, self._plain_logits = over(loss_gradient(net, self.dtype)), over(self._logits)
        self._gradient = compiled(self._plain_gradient, device, config.compiled)
        self._forward = compiled(self._plain_logits, device, config.compiled)

    def epoch(self, theta_KP: Tensor, velocity_KP: Tensor | None, seeds: Sequence[int], epoch: int) -> Tensor:
        """One pass over the images, in place; the mean loss of each expert, taken before each step."""
        losses_K, count = torch.zeros(len(seeds), device=self.device), 0
        for x, y_KB in self.batches(seeds, epoch):
            losses_K += self.step(theta_KP, velocity_KP, x, y_KB, self.config.rate(epoch)) * y_KB.shape[1]
            count += y_KB.shape[1]
            beat(f"epoch {epoch}, {count}/{len(self.labels)} images")
        return losses_K / count

    def batches(self, seeds: Sequence[int], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images [K, B, C, H, W] in network space and labels of one epoch, each expert in its own order."""
        n, shape = len(self.labels), tuple(self.pixels.shape[1:])
        order_KN = torch.stack([torch.randperm(n, generator=generator(seed, "order", epoch)) for seed in seeds])
        rngs = [generator(seed, "augment", epoch) for seed in seeds]
        images = n if self.config.last_batch == "keep" else n - n % self.batch
        order = [order_KN[:, start : start + self.batch] for start in range(0, images, self.batch)]
        for index_KB, pixels in zip(order, self._pixels(index_KB.flatten() for index_KB in order), strict=True):
            size = index_KB.shape[1]
            x = self.transform(pixels).view(len(seeds), size, *shape)
            draws = [self.augment.draw(rng, size, shape) for rng in rngs]
            yield self.augment.each(x, draws), self.labels[index_KB.to(self.device)]

    def _pixels(self, order: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each batch, as uint8 on the device: read ahead where they do not lie there."""
        if self.streamed:
            return blocks(self.pixels, order, self.device)
        return (self.pixels[index.to(self.pixels.device)] for index in order)

    def step(self, theta_KP: Tensor, velocity_KP: Tensor | None, x: Tensor, y_KB: Tensor, lr: float) -> Tensor:
        """One SGD step of every expert, in place; the losses before it."""
        config, head = self.config, slice(0, self.net.trainable)
        x = x.to(self.dtype)
        g_KP, losses_K, tails = self.gradient(theta_KP, x, y_KB)
        g, weights = g_KP[:, head], theta_KP[:, head]
        if config.sam:
            g = self._sharpness(theta_KP, g, x, y_KB)
        if config.weight_decay:
            g = g + config.weight_decay * weights
        if velocity_KP is not None:
            velocity_KP[:, head].mul_(config.momentum).add_(g)
            g = velocity_KP[:, head]
        weights.sub_(g, alpha=lr)
        if tails.shape[1]:
            theta_KP[:, self.net.trainable :].mul_(1 - MOMENTUM).add_(tails)
        return losses_K

    def _sharpness(self, theta_KP: Tensor, g: Tensor, x: Tensor, y_KB: Tensor) -> Tensor:
        head = slice(0, self.net.trainable)
        weights = theta_KP[:, head]
        reach = self.config.sam / ((weights.abs() * g).norm(dim=1, keepdim=True) + TINY)
        ascended_KP = theta_KP.clone()
        ascended_KP[:, head] += weights.square() * g * reach
        g_ascended = self.gradient(ascended_KP, x, y_KB)[0][:, head]
        along = (g * g_ascended).sum(1, keepdim=True) / (g_ascended.square().sum(1, keepdim=True) + TINY)
        return g_ascended - self.config.sam_alpha * (g - along * g_ascended)

    def gradient(self, theta_KP: Tensor, x: Tensor, y_KB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients [K, P], losses [K], the batch's share of running statistics."""
        if self.stacked:
            return self._stacked(theta_KP, x, y_KB)
        g_P, loss = torch.zeros_like(theta_KP[0]), torch.zeros((), device=self.device)
        tail = theta_KP[0, self.net.trainable :]
        for x_part, y_part in zip(self._channels_last(x[0]).split(self.chunk), y_KB[0].split(self.chunk), strict=True):
            run = self._gradient if len(y_part) == self.chunk else self._plain_gradient
            g_part, (loss_part, tail) = run(theta_KP[0], x_part, y_part)
            share = len(y_part) / y_KB.shape[1]
            g_P.add_(g_part, alpha=share)
            loss.add_(loss_part, alpha=share)
        return g_P[None], loss[None], tail[None]

    def _stacked(self, theta_KP: Tensor, x: Tensor, y_KB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All experts at once, a micro-batch after another."""
        if y_KB.shape[1] == self.chunk:
            g_KP, (losses_K, tails) = self._gradient(theta_KP, x, y_KB)
            return g_KP, losses_K, tails
        total_KP, losses_K = torch.zeros_like(theta_KP), torch.zeros(len(theta_KP), device=self.device)
        tails = theta_KP[:, self.net.trainable :]
        for x_part, y_part in zip(x.split(self.chunk, 1), y_KB.split(self.chunk, 1), strict=True):
            run = self._gradient if y_part.shape[1] == self.chunk else self._plain_gradient
            g_KP, (part_K, tails) = run(theta_KP, x_part.contiguous(), y_part.contiguous())
            share = y_part.shape[1] / y_KB.shape[1]
            total_KP.add_(g_KP, alpha=share)
            losses_K.add_(part_K, alpha=share)
        return total_KP, losses_K, tails

    def accuracies(self, theta_KP: Tensor) -> list[float] | None:
        """On the validation images, unaugmented."""
        if self.val is None:
            return None
        right_K = torch.zeros(len(theta_KP), device=self.device)
        for start in range(0, len(self.val), self.chunk):
            x = self.transform(self.val.pixels_NCHW[start : start + self.chunk].to(self.device)).to(self.dtype)
            y = self.val.labels_N[start : start + self.chunk].to(self.device)
            run = self._forward if len(y) == self.chunk else self._plain_logits
            with torch.no_grad():
                if self.stacked:
                    logits_KBC = run(theta_KP, x.expand(len(theta_KP), *x.shape))
                else:
                    logits_KBC = run(theta_KP[0], self._channels_last(x))[None]
            right_K += (logits_KBC.argmax(2) == y).sum(1)
        return [round(right / len(self.val), 6) for right in right_K.tolist()]

    def _logits(self, theta_P: Tensor, x_BCHW: Tensor) -> Tensor:
        return self.net(theta_P.to(self.dtype), x_BCHW).float()

    def _channels_last(self, x_BCHW: Tensor) -> Tensor:
        """What the CPU's bf16 convolutions want."""
        return x_BCHW.contiguous(memory_format=torch.channels_last) if self.device.type == "cpu" else x_BCHW


def chunk_of(config: ExpertConfig, net: Net, device_type: str) -> int:
    """Images that one compiled call takes: on a CPU a part of the batch, which is exact but for batch statistics."""
    if config.micro and net.norm != "batch":
        return config.micro
    if device_type != "cpu" or config.stacks(device_type) or net.norm == "batch":
        return config.batch
    with torch.no_grad():
        features = net.features(torch.zeros(net.size), torch.zeros(1, *net.spec.shape))
    near = max(8, NEAR_FLOATS // (4 * max(feature.numel() for feature in features)))
    chunk = max(part for part in range(1, config.batch + 1) if config.batch % part == 0 and part <= near)
    return chunk if 2 * chunk > min(near, config.batch) else config.batch


def loss_gradient(net: Net, dtype: torch.dtype) -> Callable[..., Any]:
    """(theta_P, x, y) -> gradient of the mean cross-entropy, (loss, the batch's share of the running statistics).

    The statistics start from zero, so that they come out as MOMENTUM times what the batch holds: the moving average
    itself is kept in fp32 whatever the network's precision.
    """

    def loss(theta_P: Tensor, x: Tensor, y_B: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        head = theta_P[: net.trainable].to(dtype)
        zeros = torch.zeros_like(theta_P[net.trainable :], dtype=dtype)
        logits, share = net.train_step_stats(torch.cat([head, zeros]), x)
        value = F.cross_entropy(logits.float(), y_B)
        return value, (value.detach(), share.detach().float())

    def gradient(theta_P: Tensor, x: Tensor, y_B: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        g_P, (_, rest) = grad_and_value(loss, has_aux=True)(theta_P, x, y_B)
        return g_P, rest

    return gradient
