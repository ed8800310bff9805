"""The exact recursion against the graph of all inner steps over torch.nn: seconds and peak memory of one outer gradient.

The floor of an outer gradient of N inner steps is 3.5 N plain steps in the same arithmetic: one forward and backward to
step, and the derivative of that by parameters and images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from rayd.data.augment import AugmentConfig
from rayd.data.images import Spec
from rayd.distill.unroll import Inner, Loss, cross_entropy, full_graph, unroll
from rayd.nets.convnet import NetConfig
from rayd.seeds import generator
from rayd.studies.bench import BenchRow, Timing, compared, interleaved, isolated, peak_of, timings
from rayd.studies.bench.field import convnet

SIZES = {
    "default": {"width": 32, "batch": 50, "steps": 8},
    "full": {"width": 128, "batch": 100, "steps": 20},
}
LONGER = {"default": 16, "full": 80}
MICRO = 5
OURS = {"exact fp32": ("fp32", False, 1), f"exact fp32, {MICRO} micro-batches": ("fp32", False, MICRO),
        "compiled fp32": ("fp32", True, 1), "compiled bf16": ("bf16", True, 1)}  # fmt: skip
"""precision, compiled, micro-batches"""


def field_loss(width: int) -> Loss:
    """The same loss over torch.nn modules; parameters in the order of our vector."""
    net = convnet(width)
    shapes = {name: p.shape for name, p in net.named_parameters()}

    def loss(theta_P: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        parts = theta_P.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
        return F.cross_entropy(functional_call(net, weights, (images,)), targets)

    return loss


def outer_gradients(
    width: int, batch: int, steps: int
) -> Callable[[str], tuple[Callable[[], None], Callable[[], None]]]:
    """By way: one outer gradient of plain pixels, and a plain inner step in the same arithmetic."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec, rng = Spec((3, 32, 32), 10), generator(0, "bench")
    net = NetConfig(depth=3, width=width).build(spec)
    theta = net.init(rng).to(device)
    end = theta + 0.01 * torch.randn(net.size, generator=rng).to(device)
    pixels = torch.randn(batch, *spec.shape, generator=rng).to(device).requires_grad_()
    targets = F.one_hot(torch.arange(batch) % 10, 10).float().to(device)
    lr = torch.tensor(0.02, device=device, requires_grad=True)
    augment = AugmentConfig().build()
    draws = [augment.draw(rng, batch, pixels.shape) for _ in range(steps)]

    def source(i: int) -> tuple[Tensor, Tensor]:
        return augment(pixels, draws[i]), targets

    def way(name: str) -> tuple[Callable[[], None], Callable[[], None]]:
        precision, compiled, micro = OURS.get(name, ("fp32", False, 1))
        loss = field_loss(width) if name == "field" else cross_entropy(net, precision)
        inner = Inner(loss, device, compile=compiled, micro=micro)

        def outer() -> None:
            if name == "field":
                last = full_graph(loss, theta, source, steps, lr)
            else:
                last = unroll(inner, theta, source, steps, lr, [pixels])
            distance = (last - end).square().sum() / (theta - end).square().sum()
            torch.autograd.grad(distance, [pixels, lr])

        def plain() -> None:
            inner.gradient(theta, pixels.detach(), targets)

        return outer, plain

    return way


def ways(names: list[str], **settings: int) -> dict[str, Timing]:
    """Seconds of an outer gradient by these ways, and of 3.5 plain steps for each inner step."""
    way = outer_gradients(**settings)
    runs: dict[str, Callable[[], float | None]] = {}
    for name in names:
        outer, plain = way(name)
        runs |= {name: outer, f"floor of {name}": _repeated(plain, 3.5 * settings["steps"])}
    return interleaved(runs)


def _repeated(step: Callable[[], None], whole: float) -> Callable[[], float]:
    """A few steps, counted as their share of a whole."""

    def run() -> float:
        for _ in range(4):
            step()
        return 4 / whole

    return run


def peak(name: str, **settings: int) -> dict[str, Any]:
    """One outer gradient, for its memory."""
    outer_gradients(**settings)(name)[0]()
    return {}


def rows(size: str = "default") -> Iterator[BenchRow]:
    settings, longer = SIZES[size], LONGER[size]
    where = f"width={settings['width']} batch={settings['batch']} N={settings['steps']}"
    names = ["field", *(name for name in OURS if size == "full" or name != "compiled fp32")]
    by_way = timings("unroll", "ways", names=names, **settings)
    memory = {name: peak_of(isolated("unroll", "peak", name=name, **settings)) for name in names}
    for name in names:
        floor = by_way[f"floor of {name}"]
        words = f"{where} {'graph of torch.nn fp32' if name == 'field' else name}"
        share = memory[name] / memory["field"]
        yield compared("unroll", words, by_way[name], by_way["field"], floor=floor, memory_ratio=share)
        if "compiled" in name:
            yield BenchRow(bench="unroll", case=f"{words}: compilation", value=by_way[name].compilation, unit="s")
    long = peak_of(isolated("unroll", "peak", name="exact fp32", **(settings | {"steps": longer})))
    net = NetConfig(depth=3, width=settings["width"]).build(Spec((3, 32, 32), 10))
    stored = (longer - settings["steps"]) * net.size * 4
    case, growth = f"{where} to N={longer}: memory beyond stored parameters", long - memory["exact fp32"] - stored
    share = long / (memory["exact fp32"] + stored)
    yield BenchRow(bench="unroll", case=case, value=growth / 2**20, unit="MB", memory_ratio=share)
