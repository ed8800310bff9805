"""What the networks are made of: declared slots, and layers as plain functions of named views of theta_P.

No nn.Module: a network is a pure function of a vector, which is what unrolling, vmap over experts and compilation want.
Every layer is written so that it differentiates twice, maps under torch.func.vmap and compiles.

Shapes: N images, C channels, H, W sides, K classes, P parameters (P0 trainable, the running statistics behind them).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.data.images import Spec
from rayd.nets.flat import Flat

EPS = 1e-5
MOMENTUM = 0.1


class Slot(NamedTuple):
    """How one tensor starts: uniform in +-value (torch's default for weights and biases), normal, or constant."""

    shape: tuple[int, ...]
    kind: str
    value: float


class Moments(NamedTuple):
    """What one batch norm saw against what it remembers (DWA's regulariser)."""

    mean_C: Tensor
    var_C: Tensor
    running_mean_C: Tensor
    running_var_C: Tensor
    seen: int
    """Numbers per channel that the mean and the (biased) variance were taken over."""


class NetLayout:
    """Collects the slots of a network, parameters and running statistics apart."""

    def __init__(self, norm: str) -> None:
        self.norm_kind = norm
        self.params: dict[str, Slot] = {}
        self.stats: dict[str, Slot] = {}

    def conv(self, name: str, c_in: int, c_out: int, k: int, bias: bool = True) -> None:
        bound = 1 / math.sqrt(c_in * k * k)
        self.params[f"{name}.weight"] = Slot((c_out, c_in, k, k), "uniform", bound)
        if bias:
            self.params[f"{name}.bias"] = Slot((c_out,), "uniform", bound)

    def linear(self, name: str, d_in: int, d_out: int) -> None:
        bound = 1 / math.sqrt(d_in)
        self.params[f"{name}.weight"] = Slot((d_out, d_in), "uniform", bound)
        self.params[f"{name}.bias"] = Slot((d_out,), "uniform", bound)

    def scale(self, name: str, channels: int) -> None:
        self.params[f"{name}.weight"] = Slot((channels,), "constant", 1.0)
        self.params[f"{name}.bias"] = Slot((channels,), "constant", 0.0)

    def norm(self, name: str, channels: int) -> None:
        if self.norm_kind == "none":
            return
        self.scale(name, channels)
        if self.norm_kind == "batch":
            self.stats[f"{name}.mean"] = Slot((channels,), "constant", 0.0)
            self.stats[f"{name}.var"] = Slot((channels,), "constant", 1.0)


class Scope:
    """The layers of one forward pass over one set of named views."""

    def __init__(self, views: dict[str, Tensor], norm: str, train: bool = False, watch: bool = False) -> None:
        self.views, self.norm_kind, self.train, self.watch = views, norm, train, watch
        self.moments: dict[str, Moments] = {}

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        return F.conv2d(x, self.views[f"{name}.weight"], self.views.get(f"{name}.bias"), stride, padding)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.views[f"{name}.weight"], self.views[f"{name}.bias"])

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        x32 = wide(x)
        x32 = x32 - x32.mean(-1, keepdim=True)
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + EPS)
        return (x32 * self.views[f"{name}.weight"] + self.views[f"{name}.bias"]).to(x.dtype)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Normalisation as mean and variance arithmetic, at least in fp32 whatever the network's precision."""
        if self.norm_kind == "none":
            return x
        x32 = wide(x)
        if self.norm_kind == "instance":
            x32 = standardise(x32, (2, 3))
        elif self.norm_kind == "group":
            groups = math.gcd(32, x.shape[1])
            x32 = standardise(x32.unflatten(1, (groups, -1)), (2, 3, 4)).flatten(1, 2)
        else:
            x32 = self._batch_norm(name, x32)
        weight, bias = self.views[f"{name}.weight"], self.views[f"{name}.bias"]
        return (x32 * weight[:, None, None] + bias[:, None, None]).to(x.dtype)

    def _batch_norm(self, name: str, x32: Tensor) -> Tensor:
        running = self.views[f"{name}.mean"], self.views[f"{name}.var"]
        mean, var = running
        if self.train or self.watch:
            seen_mean = x32.mean((0, 2, 3))
            seen_var = (x32 - seen_mean[:, None, None]).square().mean((0, 2, 3))
            self.moments[name] = Moments(seen_mean, seen_var, *running, x32.numel() // x32.shape[1])
            if self.train:
                mean, var = seen_mean, seen_var
        return (x32 - mean[:, None, None]) * torch.rsqrt(var + EPS)[:, None, None]


def wide(x: Tensor) -> Tensor:
    """At least single precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def standardise(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    x = x - x.mean(dims, keepdim=True)
    return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + EPS)


def halve(x: Tensor) -> Tensor:
    """2x2 average pooling; an odd last row or column is dropped, as torch does."""
    return F.avg_pool2d(x, 2)


class Net:
    """A network as a pure function of theta_P: `size` P numbers, of which the first `trainable` are parameters."""

    def __init__(self, config: Any, spec: Spec, plan: NetLayout) -> None:
        self.config, self.spec = config, spec
        self.slots = {**plan.params, **plan.stats}
        self.norm = plan.norm_kind
        self.flat = Flat(tuple(self.slots), tuple(slot.shape for slot in self.slots.values()))
        self.size = self.flat.size
        self.trainable = sum(math.prod(slot.shape) for slot in plan.params.values())

    def blocks(self, scope: Scope, x: Tensor) -> list[Tensor]:
        """Features after each block; the last entry is the flattened embedding [N, D]."""
        raise NotImplementedError

    def head(self, scope: Scope, embedding_ND: Tensor) -> Tensor:
        return scope.linear("head", embedding_ND)

    def init(self, rng: torch.Generator) -> Tensor:
        """A fresh theta_P, fp32 on the CPU, distributed as torch's own defaults."""
        theta_P = torch.empty(self.size)
        for slot, part in zip(self.slots.values(), theta_P.split(self.flat.lengths), strict=True):
            if slot.kind == "uniform":
                part.uniform_(-slot.value, slot.value, generator=rng)
            elif slot.kind == "normal":
                part.normal_(0, slot.value, generator=rng)
            else:
                part.fill_(slot.value)
        return theta_P

    def __call__(self, theta_P: Tensor, images_NCHW: Tensor, train: bool = False) -> Tensor:
        """Logits [N, K]. `train` only matters to batch norm: statistics of the batch instead of the running ones."""
        scope = Scope(self.flat.split(theta_P), self.norm, train)
        return self.head(scope, self.blocks(scope, images_NCHW)[-1])

    def features(self, theta_P: Tensor, images_NCHW: Tensor, train: bool = False) -> list[Tensor]:
        return self.blocks(Scope(self.flat.split(theta_P), self.norm, train), images_NCHW)

    def logits(self, theta_P: Tensor, embedding_ND: Tensor) -> Tensor:
        return self.head(Scope(self.flat.split(theta_P), self.norm), embedding_ND)

    def train_step_stats(self, theta_P: Tensor, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits under the batch's statistics, and the tail of theta_P (running statistics) moved towards them."""
        scope = Scope(self.flat.split(theta_P), self.norm, train=True)
        logits_NK = self.head(scope, self.blocks(scope, images_NCHW)[-1])
        if not scope.moments:
            return logits_NK, theta_P[self.trainable :]
        tail: dict[str, Tensor] = {}
        for name, seen in scope.moments.items():
            unbiased_C = seen.var_C * (seen.seen / max(seen.seen - 1, 1))
            for key, old, new in (("mean", seen.running_mean_C, seen.mean_C), ("var", seen.running_var_C, unbiased_C)):
                tail[f"{name}.{key}"] = torch.lerp(old, new.detach().to(old.dtype), MOMENTUM)
        return logits_NK, torch.cat([tail[name] for name in self.slots if name in tail])

    def moments(self, theta_P: Tensor, images_NCHW: Tensor) -> tuple[Tensor, list[Moments]]:
        """Logits in evaluation mode, and what each batch norm saw beside what it remembers."""
        scope = Scope(self.flat.split(theta_P), self.norm, watch=True)
        logits_NK = self.head(scope, self.blocks(scope, images_NCHW)[-1])
        return logits_NK, list(scope.moments.values())

    def fingerprint(self) -> str:
        """The same for equal architectures on every machine: name, layout and input."""
        layout = [[name, list(slot.shape)] for name, slot in self.slots.items()]
        facts = [type(self).__name__, self.norm, list(self.spec.shape), self.spec.classes, layout]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True)
class Side:
    """What a network may assume of its input."""

    channels: int
    size: int
    padding: int
    """Of a first 3x3 convolution: 28 px becomes 32."""

    @classmethod
    def of(cls, spec: Spec) -> Side:
        channels, height, width = spec.shape
        if height != width:
            raise ValueError(f"networks take square images, not {height}x{width}")
        return cls(channels, 32, 3) if height == 28 else cls(channels, height, 1)
