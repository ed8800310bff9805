"""The teacher, the student and its second layer. Shapes: N examples, L neurons, d inputs, r directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.errors import refuse
from rayd.nets.flat import Flat
from rayd.seeds import generator

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"softplus": F.softplus, "relu": torch.relu}
RIDGE = 1e-5
NOISE = 0.1


@dataclass(frozen=True)
class Task:
    """A teacher on r of d directions."""

    basis_dr: Tensor
    seed: int

    @staticmethod
    def check(d: int, r: int, width: int) -> None:
        if not 1 <= r <= d:
            raise refuse("theory.r", r, f"1 to d={d}: a subspace has at most as many directions as the space")
        if width < 2 or width % 2:
            raise refuse("theory.width", width, "an even number from 2: neurons start in pairs of opposite sign")

    @classmethod
    def draw(cls, d: int, r: int, seed: int) -> Task:
        return cls(torch.linalg.qr(torch.randn(d, r, generator=generator(seed, "basis")))[0], seed)

    def clean(self, x_Nd: Tensor) -> Tensor:
        """sum_k He2(b_k . x) / sqrt(2 r): variance 1."""
        z_Nr = x_Nd @ self.basis_dr
        return (z_Nr.square() - 1).sum(1) / math.sqrt(2 * z_Nr.shape[1])

    def examples(self, n: int, purpose: str, noise: float = NOISE) -> tuple[Tensor, Tensor]:
        rng = generator(self.seed, "examples", purpose)
        x_Nd = torch.randn(n, len(self.basis_dr), generator=rng)
        return x_Nd, self.clean(x_Nd) + noise * torch.randn(n, generator=rng)


@dataclass(frozen=True)
class Student:
    """A two-layer network as a function of its first layer; the signs of the second are fixed."""

    d: int
    width: int
    activation: str = "softplus"

    @property
    def flat(self) -> Flat:
        return Flat(("weight",), ((self.width, self.d),))

    def init(self, rng: torch.Generator) -> Tensor:
        """theta: pairs of equal neurons on the unit sphere, which cancel."""
        half = torch.randn(self.width // 2, self.d, generator=rng)
        half = half / half.norm(dim=1, keepdim=True)
        return torch.cat([half, half]).flatten()

    def loss(self, theta_P: Tensor, x_Nd: Tensor, y_N: Tensor) -> Tensor:
        """L times the squared error over 2: the gradient of a neuron is then of order one. Pairs are M or N, no matter."""
        weight_Ld = self.flat.split(theta_P)["weight"]
        sign_L = torch.ones(self.width).to(x_Nd)
        sign_L[self.width // 2 :] = -1
        f_N = ACTIVATIONS[self.activation](x_Nd @ weight_Ld.T) @ sign_L / self.width
        error: Tensor = self.width * (f_N - y_N).square().mean() / 2
        return error

    def stepped(self, gradient_P: Tensor) -> Tensor:
        """The first layer after one large step, rows at unit length: their scale is the step size's, which is free."""
        weight_Ld = -gradient_P.view(self.width, self.d)
        unit_Ld: Tensor = weight_Ld / weight_Ld.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return unit_Ld


@dataclass(frozen=True)
class Second:
    """The second layer: random biases and a ridge regression on the features."""

    weight_Ld: Tensor
    bias_L: Tensor
    activation: str

    @classmethod
    def draw(cls, weight_Ld: Tensor, seed: int, activation: str) -> Second:
        return cls(weight_Ld, 4 * torch.rand(len(weight_Ld), generator=generator(seed, "bias")) - 2, activation)

    def features(self, x_Nd: Tensor) -> Tensor:
        phi_NL = ACTIVATIONS[self.activation](x_Nd @ self.weight_Ld.T + self.bias_L).double()
        return torch.cat([phi_NL, torch.ones(len(phi_NL), 1, dtype=torch.float64)], 1)

    def fit(self, x_Nd: Tensor, y_N: Tensor, ridge: float = RIDGE) -> Tensor:
        phi = self.features(x_Nd)
        gram = phi.T @ phi / len(phi) + ridge * torch.eye(phi.shape[1], dtype=torch.float64)
        a_L: Tensor = torch.linalg.solve(gram, phi.T @ y_N.double() / len(phi))
        return a_L

    def error(self, a_L: Tensor, x_Nd: Tensor, y_N: Tensor) -> float:
        return float((self.features(x_Nd) @ a_L - y_N.double()).square().mean())
