"""The pretend GPU itself: what it allows and what it refuses, as CUDA does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from tests.support.pretend import Refusal, pretend_gpu

__all__ = ["pretend_gpu"]


def rows() -> tuple[Tensor, Tensor]:
    """The same numbers on the CPU and on the GPU."""
    x = torch.arange(12.0).view(3, 4)
    return x, x.to("cuda")


def test_it_computes_on_a_device_of_its_own(pretend_gpu: torch.device) -> None:
    x, y = rows()
    assert (
        y.device == pretend_gpu and torch.zeros(2, device="cuda").is_cuda and torch.tensor([1.0], device="cuda").is_cuda
    )
    assert (y @ y.T + 1).device == pretend_gpu
    assert torch.equal((y @ y.T + 1).cpu(), x @ x.T + 1)
    assert float(y.sum()) == float(x.sum()) and y.tolist() == x.tolist()
    y[1] += 5
    y[:, :2].mul_(2)
    x[1] += 5
    x[:, :2].mul_(2)
    assert torch.equal(y.cpu(), x)


def test_gradients_stay_on_the_device(pretend_gpu: torch.device) -> None:
    x, y = rows()
    found = []
    for one in (x, y):
        leaf = one.clone().requires_grad_()
        loss = (
            torch.nn.functional.conv2d(leaf.view(1, 1, 3, 4), torch.ones(1, 1, 2, 2, device=leaf.device)).square().sum()
        )
        found.append(torch.autograd.grad(loss, leaf)[0])
    assert found[1].is_cuda and torch.equal(found[0], found[1].cpu())
    both = [vmap(grad(lambda row: row.square().sum()))(one) for one in (x, y)]
    assert both[1].is_cuda and torch.equal(both[0], both[1].cpu())


ALLOWED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a CPU number among operands": lambda x, y: y * torch.tensor(2.0),
    "a CPU index": lambda x, y: y[torch.tensor([0, 2])],
    "a contiguous copy that does not block": lambda x, y: x.to("cuda", non_blocking=True),
    "a copy into it": lambda x, y: y.copy_(x),
    "a number written into it": lambda x, y: y.index_put_((torch.tensor([0]),), torch.tensor(1.0)),
}
REFUSED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "two devices": lambda x, y: x + y,
    "two devices in a product": lambda x, y: y @ x.T,
    "two devices side by side": lambda x, y: torch.cat([x, y]),
    "a CUDA index into a CPU tensor": lambda x, y: x[torch.tensor([0], device="cuda")],
    "CPU values written by index": lambda x, y: y.index_put_((torch.tensor([0]),), x[:1]),
    "a CPU mask": lambda x, y: torch.where(x > 3, y, 0.0),
    "a CPU generator": lambda x, y: torch.rand(3, device="cuda", generator=torch.Generator()),
    "a CPU generator in place": lambda x, y: y.uniform_(generator=torch.Generator()),
    "a copy that says it does not block": lambda x, y: x.T.to("cuda", non_blocking=True),
    "NumPy": lambda x, y: y.numpy(),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_cuda_allows(name: str, pretend_gpu: torch.device) -> None:
    assert ALLOWED[name](*rows()).is_cuda


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses(name: str, pretend_gpu: torch.device) -> None:
    with pytest.raises(Refusal):
        REFUSED[name](*rows())


def test_a_captured_function_is_replayed_into_the_same_tensors(pretend_gpu: torch.device) -> None:
    from rayd.machine import Captured

    calls = []

    def squares(x: Tensor) -> Tensor:
        calls.append(1)
        return x.square().sum(0)

    run = Captured(squares)
    _, y = rows()
    first = run(y)
    kept = first.clone()
    second = run(2 * y)
    assert len(calls) == Captured.warmups + 1
    assert torch.equal(second.cpu(), 4 * kept.cpu())
    assert first is second, "an output is valid until the next call"


@pytest.mark.parametrize("wait", [float, lambda x: x.cpu(), lambda x: x.new_ones(1).to("cpu") + 1])
def test_nothing_waits_while_a_graph_is_captured(wait: Callable[[Tensor], Any], pretend_gpu: torch.device) -> None:
    from rayd.machine import Captured

    with pytest.raises(Refusal, match="captured"):
        Captured(lambda x: wait(x.sum()))(rows()[1])
