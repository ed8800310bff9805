"""Gradient matching: DC (Zhao et al., ICLR 2021, arXiv:2006.05929) and DSA (Zhao & Bilen, ICML 2021, arXiv:2102.08259).

    L = sum_c D(grad_theta CE(A(real_c)), grad_theta CE(A(syn_c))),   D = sum over rows of weights of 1 - cosine

An episode starts from a fresh network; each of its `outer` steps matches once and then trains the network on the
synthetic set for `inner` epochs (`Objective.after`; the last step of an episode ends in the next fresh network).
DSA is DC with a siamese augmentation.

What we changed: one step of the engine is one outer step, so `steps` = the paper's iterations * outer. Batch norm is
refused (see classwise.py). The derivative of D by images and labels is one compiled function, no graph is kept.

`parameter_gradient` and `distance` know nothing of images: inputs are whatever the loss takes.

P parameters, R rows of a weight, K classes, N images of one class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from rayd.distill.classwise import Batch, Classwise, refuse_untrained_batch_norm
from rayd.distill.contract import Codec, Inputs, Item, Match
from rayd.distill.unroll import Loss, cross_entropy
from rayd.errors import refuse
from rayd.machine import compiled
from rayd.nets.flat import Flat
from rayd.seeds import generator

SMALL = 1e-6
"""Added to the product of norms, as published: a row without gradient is at distance 1."""


def rows_apart(real_P: Tensor, syn_P: Tensor, flat: Flat) -> Tensor:
    """Sum over output rows of every weight of 1 - cosine. Vectors (biases, gains) do not count, as published."""
    total = real_P.new_zeros(())
    real, syn = flat.split(real_P), flat.split(syn_P)
    for name, shape in zip(flat.names, flat.shapes, strict=True):
        if len(shape) < 2:
            continue
        a_RD, b_RD = real[name].flatten(1), syn[name].flatten(1)
        cosine_R = (a_RD * b_RD).sum(1) / (a_RD.norm(dim=1) * b_RD.norm(dim=1) + SMALL)
        total = total + (1 - cosine_R).sum()
    return total


def squared_apart(real_P: Tensor, syn_P: Tensor, flat: Flat) -> Tensor:
    return (real_P - syn_P).square().sum()


def cosine_apart(real_P: Tensor, syn_P: Tensor, flat: Flat) -> Tensor:
    cosine: Tensor = (real_P * syn_P).sum() / (real_P.norm() * syn_P.norm() + SMALL)
    return 1 - cosine


DISTANCES: dict[str, Callable[[Tensor, Tensor, Flat], Tensor]] = {
    "rows": rows_apart,
    "squared": squared_apart,
    "cosine": cosine_apart,
}


def distance(real_P: Tensor, syn_P: Tensor, flat: Flat, kind: str = "rows") -> Tensor:
    """How far two gradients over one layout are apart; differentiable in both."""
    return DISTANCES[kind](real_P, syn_P, flat)


def parameter_gradient(loss: Loss, theta_P: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """grad_theta loss(theta, inputs, targets); differentiable in inputs and targets. Inputs are of any kind."""
    gradient_P: Tensor = grad(loss)(theta_P, inputs, targets)
    return gradient_P


class _Known(torch.autograd.Function):
    """A value whose derivatives by two tensors are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, by_x: Tensor, by_y: Tensor, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(by_x, by_y)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_x, by_y = ctx.saved_tensors
        return None, None, None, grads[0] * by_x, grads[0] * by_y


class Gradient(Classwise):
    needs: ClassVar[frozenset[str]] = frozenset({"nets", "real"})
    uses_labels: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Classwise.Config):
        outer: int = 1
        """Steps of an episode (published: 1, 10, 50 at 1, 10, 50 images per class)."""
        inner: int = 1
        """Epochs over the synthetic set between two of them (published: 1, 50, 10)."""
        lr_net: float = 0.01
        """Plain SGD's, for the network in between."""
        batch_train: int = 256
        distance: Literal["rows", "squared", "cosine"] = "rows"
        """rows: as published; squared and cosine: over the whole gradient."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("outer", "batch_train"):
                if getattr(self, name) < 1:
                    raise refuse(f"objective.{name}", getattr(self, name), "at least 1")
            if self.inner < 0:
                raise refuse("objective.inner", self.inner, "a number of epochs, 0 for none")
            if not self.lr_net > 0:
                raise refuse("objective.lr_net", self.lr_net, "above 0")

        def build(self, inputs: Inputs) -> Gradient:
            return Gradient(self, inputs)

    theta_P: Tensor

    def __init__(self, config: Config, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        refuse_untrained_batch_norm(inputs)
        self.config = config
        self.register_buffer("theta_P", self._fresh(0))
        loss = cross_entropy(inputs.net, inputs.precision)
        flat = inputs.net.flat

        def gradient(theta_P: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
            return parameter_gradient(loss, theta_P, inputs, targets)

        def apart(inputs: Tensor, targets: Tensor, theta_P: Tensor, real_P: Tensor) -> Tensor:
            return distance(real_P, gradient(theta_P, inputs, targets), flat, config.distance)

        def derived(inputs: Tensor, targets: Tensor, theta_P: Tensor, real_P: Tensor) -> tuple[Any, ...]:
            return grad_and_value(apart, argnums=(0, 1))(inputs, targets, theta_P, real_P)

        self._gradient = compiled(gradient, inputs.device, inputs.compiled)
        self._derived = compiled(derived, inputs.device, inputs.compiled)

    def _fresh(self, episode: int) -> Tensor:
        return self.inputs.net.init(generator(self.inputs.seed, "net", episode)).to(self.inputs.device)

    def source(self, step: int) -> Any:
        """No network ahead of the step: it is trained between steps and lives in the objective's state."""
        return None

    def mean_gradient(self, images_NCHW: Tensor, targets_NK: Tensor) -> Tensor:
        """The gradient of the mean loss, block by block."""
        total_P = torch.zeros_like(self.theta_P)
        for x, y in zip(images_NCHW.split(self.block), targets_NK.split(self.block), strict=True):
            total_P += self._gradient(self.theta_P, x, y) * (len(x) / len(images_NCHW))
        return total_P

    def forward(self, codec: Codec, item: Item, data: Batch) -> Match:
        syn = self.synthetic(codec, item)
        parts = zip(syn.views_NCHW.split(list(syn.counts)), syn.labels_NK.split(list(syn.counts)), strict=True)
        value = torch.zeros((), device=self.inputs.device)
        for (views, labels), real, targets in zip(parts, data.real_GnCHW, data.targets_GnK, strict=True):
            real_P = self.mean_gradient(real, targets)
            (by_x, by_y), apart = self._derived(views.detach(), labels.detach(), self.theta_P, real_P)
            value = value + _Known.apply(apart, by_x, by_y, views, labels)
        return Match(value, {}, self.scene(data, self.theta_P, syn))

    def after(self, codec: Codec, step: int) -> None:
        """Train the network on the synthetic set as it now is, or start the next episode."""
        c = self.config
        if (step + 1) % c.outer == 0:
            self.theta_P = self._fresh((step + 1) // c.outer)
            return
        theta_P = self.theta_P
        for epoch in range(c.inner):
            rng = generator(self.inputs.seed, "inner", step, epoch)
            for index in torch.randperm(len(codec), generator=rng).split(c.batch_train):
                with torch.no_grad():
                    images, targets = codec.decode(index)
                    draw = self.augment.draw(rng, 1, self.inputs.spec.shape)
                    views = self.augment(images, draw)
                theta_P = theta_P - c.lr_net * self._gradient(theta_P, views, targets)
        self.theta_P = theta_P
