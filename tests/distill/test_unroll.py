"""The unrolled gradient against the full graph, finite differences, micro-batches and TESLA's truncation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.data.augment import AugmentConfig
from rayd.data.images import Spec
from rayd.distill.unroll import Inner, cross_entropy, full_graph, unroll
from rayd.nets.convnet import NetConfig
from rayd.seeds import generator

CPU = torch.device("cpu")
STEPS, BATCH, KEPT = 4, 6, 10


class Problem:
    """A small case in fp64 with all a real one has: factors, soft labels, minibatches, augmentation."""

    def __init__(self, factored: bool = False, augmented: bool = True) -> None:
        spec = Spec((3, 8, 8), 4)
        self.net = NetConfig(name="convnet", depth=2, width=5).build(spec)
        rng = generator(0, "problem")
        real = {"generator": rng, "dtype": torch.float64}
        self.theta = self.net.init(rng).double()
        self.end = self.theta + 0.05 * torch.randn(len(self.theta), **real)
        self.lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        self.logits = torch.randn(KEPT, 4, **real).requires_grad_()
        if factored:
            self.leaves = [
                torch.randn(KEPT, 3, 8, 3, **real).requires_grad_(),
                torch.randn(3, 8, **real).requires_grad_(),
            ]
        else:
            self.leaves = [torch.randn(KEPT, 3, 8, 8, **real).requires_grad_()]
        self.augment = AugmentConfig().build() if augmented else None
        self.index = [torch.randperm(KEPT, generator=rng)[:BATCH] for _ in range(STEPS)]
        if self.augment is not None:
            self.draws = [self.augment.draw(rng, BATCH, (BATCH, 3, 8, 8)) for _ in range(STEPS)]

    def batch(self, i: int) -> tuple[Tensor, Tensor]:
        images = self.leaves[0][self.index[i]]
        if len(self.leaves) == 2:
            images = images @ self.leaves[1]
        if self.augment is not None:
            images = self.augment(images, self.draws[i])
        return images, F.softmax(self.logits[self.index[i]], dim=1)

    @property
    def inputs(self) -> list[Tensor]:
        return [*self.leaves, self.logits, self.lr]

    def distance(self, theta: Tensor) -> Tensor:
        return (theta - self.end).square().sum() / (self.theta - self.end).square().sum()

    def exact(self, **options: object) -> list[Tensor]:
        inner = Inner(cross_entropy(self.net, "fp64"), CPU, compile=False, **options)  # type: ignore[arg-type]
        theta = unroll(inner, self.theta, self.batch, STEPS, self.lr, [*self.leaves, self.logits])
        return list(torch.autograd.grad(self.distance(theta), self.inputs))

    def reference(self) -> list[Tensor]:
        theta = full_graph(cross_entropy(self.net, "fp64"), self.theta, self.batch, STEPS, self.lr)
        return list(torch.autograd.grad(self.distance(theta), self.inputs))


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("augmented", [False, True])
def test_equals_the_full_graph(factored: bool, augmented: bool) -> None:
    problem = Problem(factored, augmented)
    for got, want in zip(problem.exact(), problem.reference(), strict=True):
        assert (got - want).norm() <= 1e-10 * want.norm()


def test_equals_finite_differences() -> None:
    problem = Problem(factored=True)
    inner = Inner(cross_entropy(problem.net, "fp64"), CPU, compile=False)

    def loss() -> Tensor:
        return problem.distance(unroll(inner, problem.theta, problem.batch, STEPS, problem.lr, problem.leaves))

    for leaf, gradient in zip(problem.inputs, problem.exact(), strict=True):
        direction = torch.randn(leaf.shape, generator=generator(1), dtype=torch.float64)
        step = 1e-6
        with torch.no_grad():
            leaf += step * direction
            above = loss()
            leaf -= 2 * step * direction
            below = loss()
            leaf += step * direction
        slope = (above - below) / (2 * step)
        assert abs(float(slope - (gradient * direction).sum())) <= 1e-5 * abs(float(slope)) + 1e-9


def test_micro_batches_give_the_same_gradient() -> None:
    problem = Problem()
    for got, want in zip(problem.exact(micro=3), problem.exact(), strict=True):
        assert (got - want).norm() <= 1e-10 * want.norm()


def test_compiled_equals_eager() -> None:
    problem = Problem(augmented=False)
    inner = Inner(cross_entropy(problem.net, "fp64"), CPU, compile=True)
    theta = unroll(inner, problem.theta, problem.batch, STEPS, problem.lr, [*problem.leaves, problem.logits])
    got = torch.autograd.grad(problem.distance(theta), problem.inputs)
    for a, b in zip(got, problem.exact(), strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm()


def test_tesla_is_another_gradient() -> None:
    problem = Problem()
    truncated, exact = problem.exact(exact=False), problem.exact()
    cosine = F.cosine_similarity(truncated[0].flatten(), exact[0].flatten(), dim=0)
    assert 0.2 < cosine < 0.9999


def test_the_replayed_batch_is_asked_for_twice_and_once_per_pass() -> None:
    problem = Problem(augmented=False)
    asked: list[int] = []

    def batch(i: int) -> tuple[Tensor, Tensor]:
        asked.append(i)
        return problem.batch(i)

    inner = Inner(cross_entropy(problem.net, "fp64"), CPU, compile=False)
    theta = unroll(inner, problem.theta, batch, STEPS, problem.lr, problem.leaves)
    torch.autograd.grad(problem.distance(theta), problem.leaves)
    assert asked == [0, 1, 2, 3, 3, 2, 1, 0]
