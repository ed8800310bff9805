"""The exact gradient through N steps of gradient descent in the memory of one step.

theta_{i+1} = theta_i - lr * g_i,   g_i = grad_theta loss(theta_i, x_i, y_i),   i < N.

Forward keeps every theta_i (N*P floats) and no activations. Backward carries lambda_N = dL/dtheta_N to the front:

    lambda_i = lambda_{i+1} - lr * d/dtheta (g_i . lambda_{i+1})
    dL/dx_i  = -lr * d/dx (g_i . lambda_{i+1})          (labels y_i likewise)
    dL/dlr  -= g_i . lambda_{i+1}

so any loss on theta_N is plain autograd. Where x_i comes from (a codec, an augmentation with its draws) is a function
`batch(i)` that must give the same tensors each time it is called; it is replayed to carry dL/dx_i into the leaves.
`exact=False` freezes lambda at lambda_N: TESLA's truncated gradient, for comparison only.

Several workers can take one unroll together, each with a part of the images of every step. g_i and the derivative by
theta are means over images, so the workers sum P numbers once a step forward, and once backward. dL/dx_i and g_i . lambda
stay with whoever has the images: they are parts of sums that the caller takes anyway.

P: network parameters, N: steps here, B: images of one step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value

from rayd.machine import compiled

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""loss(theta_P, images_B..., targets_BK) -> mean loss over the batch, a scalar in fp32."""
Batch = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Split:
    """A worker's part of the images of each step: the `number`-th of `of`, and the sum over the workers of the others."""

    number: int = 0
    of: int = 1
    sum: Callable[[Tensor], Tensor] = lambda numbers: numbers
    images: int = 0
    """Of a whole step; 0: those that are here."""

    def places(self) -> slice:
        """Which images of a step are here."""
        return slice(self.images * self.number // self.of, self.images * (self.number + 1) // self.of)


WHOLE = Split()

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def cross_entropy(net: Callable[[Tensor, Tensor], Tensor], precision: str = "fp32") -> Loss:
    """Cross-entropy against label probabilities; the network in `precision`, the loss and the parameters in fp32."""
    dtype = DTYPES[precision]

    def loss(theta_P: Tensor, images: Tensor, targets_BK: Tensor) -> Tensor:
        logits = net(theta_P.to(dtype), images.to(dtype)).to(targets_BK.dtype)
        return -(targets_BK * F.log_softmax(logits, dim=1)).sum(1).mean()

    return loss


class Inner:
    """The arithmetic of one inner step: g, and the derivatives of g . lambda; compiled once for each shape.

    `micro` splits a step's images into that many equal parts and adds up their shares, exactly, so that the activations
    held are those of one part. That is valid for every network without batch statistics.
    """

    def __init__(self, loss: Loss, device: torch.device, *, compile: bool = True, micro: int = 1, exact: bool = True):
        def gradient(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            by_theta: Tensor = grad(loss)(theta, x, y)
            return by_theta

        def product(theta: Tensor, x: Tensor, y: Tensor, lam: Tensor) -> Tensor:
            dot: Tensor = (grad(loss)(theta, x, y) * lam).sum()
            return dot

        def products(theta: Tensor, x: Tensor, y: Tensor, lam: Tensor) -> tuple[Tensor, ...]:
            wanted = (0, 1, 2) if exact else (1, 2)
            derivatives, value = grad_and_value(product, argnums=wanted)(theta, x, y, lam)
            return (value, *derivatives)

        self.micro, self.exact = micro, exact
        self._gradient = compiled(gradient, device, compile, graphs=compile)
        self._products = compiled(products, device, compile, graphs=compile)

    def gradient(self, theta: Tensor, x: Tensor, y: Tensor, of: int = 0) -> Tensor:
        """The part of g that these images have in a step of `of`; 0: of these alone."""
        of = of or len(x)
        if self.micro == 1 and len(x) == of:
            return self._gradient(theta, x, y)  # type: ignore[no-any-return]
        total = torch.zeros_like(theta)
        for x_part, y_part in zip(x.chunk(self.micro), y.chunk(self.micro), strict=True):
            total += self._gradient(theta, x_part, y_part) * (len(x_part) / of)
        return total

    def products(
        self, theta: Tensor, x: Tensor, y: Tensor, lam: Tensor, of: int = 0
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The part of g . lambda and of its derivatives by theta (None when not exact), images and targets that these
        images have in a step of `of`; 0: of these alone."""
        of = of or len(x)
        if self.micro == 1 and len(x) == of:
            value, *by = self._products(theta, x, y, lam)
            return value, by[0] if self.exact else None, by[-2], by[-1]
        value, by_theta = torch.zeros((), dtype=theta.dtype, device=theta.device), torch.zeros_like(theta)
        by_x, by_y = [], []
        for x_part, y_part in zip(x.chunk(self.micro), y.chunk(self.micro), strict=True):
            share = len(x_part) / of
            part, *by = self._products(theta, x_part, y_part, lam)
            value += part * share
            if self.exact:
                by_theta += by[0] * share
            by_x.append(by[-2] * share)
            by_y.append(by[-1] * share)
        return value, by_theta if self.exact else None, torch.cat(by_x), torch.cat(by_y)


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inner: Inner, batch: Batch, steps: int, split: Split, theta_P: Tensor, lr: Tensor, *leaves: Tensor
    ) -> Tensor:
        thetas = [theta_P.detach()]
        for i in range(steps):
            x, y = batch(i)
            gradient = split.sum(inner.gradient(thetas[-1], x.detach(), y.detach(), split.images))
            thetas.append(thetas[-1] - lr * gradient)
        ctx.inner, ctx.batch, ctx.split, ctx.leaves = inner, batch, split, leaves
        ctx.thetas, ctx.lr = thetas[:-1], lr.detach()
        return thetas[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        lam, lr, split = grads[0].detach(), ctx.lr, ctx.split
        by_lr = torch.zeros_like(lr)
        by_leaves: list[Tensor | None] = [None] * len(ctx.leaves)
        wanted = [k for k, leaf in enumerate(ctx.leaves) if leaf.requires_grad]
        for i in reversed(range(len(ctx.thetas))):
            with torch.enable_grad():
                x, y = ctx.batch(i)
            value, by_theta, by_x, by_y = ctx.inner.products(ctx.thetas[i], x.detach(), y.detach(), lam, split.images)
            by_lr = by_lr - value
            roots = [(out, -lr * by) for out, by in ((x, by_x), (y, by_y)) if out.requires_grad]
            if roots and wanted:
                gradients = torch.autograd.grad(
                    [out for out, _ in roots],
                    [ctx.leaves[k] for k in wanted],
                    [by.to(out.dtype) for out, by in roots],
                    allow_unused=True,
                )
                for k, g in zip(wanted, gradients, strict=True):
                    if g is not None:
                        so_far = by_leaves[k]
                        by_leaves[k] = g if so_far is None else so_far + g
            if by_theta is not None and (i > 0 or ctx.needs_input_grad[4]):
                lam = lam - lr * split.sum(by_theta)
        return (None, None, None, None, lam if ctx.inner.exact else None, by_lr, *by_leaves)


def unroll(
    inner: Inner, theta_P: Tensor, batch: Batch, steps: int, lr: Tensor, leaves: Sequence[Tensor], split: Split = WHOLE
) -> Tensor:
    """theta after `steps` steps from `theta_P`; differentiable in `lr` and in every leaf that `batch` depends on.

    `split`: which of the images of a step `batch` gives. Gradients are then those that follow from them.
    """
    out: Tensor = _Unroll.apply(inner, batch, steps, split, theta_P, lr, *leaves)
    return out


def full_graph(loss: Loss, theta_P: Tensor, batch: Batch, steps: int, lr: Tensor) -> Tensor:
    """The same, as one graph of all steps: the reference for tests and benches, memory grows with `steps`."""
    theta = theta_P.detach().requires_grad_()
    for i in range(steps):
        x, y = batch(i)
        (g,) = torch.autograd.grad(loss(theta, x, y), theta, create_graph=True)
        theta = theta - lr * g
    return theta
