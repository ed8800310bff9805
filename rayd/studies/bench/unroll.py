"""The exact recursion against the full graph of all inner steps: seconds and peak memory of one outer gradient."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.data.augment import AugmentConfig
from rayd.data.images import Spec
from rayd.distill.unroll import Inner, cross_entropy, full_graph, unroll
from rayd.machine import use_threads
from rayd.nets.convnet import NetConfig
from rayd.seeds import generator
from rayd.studies.bench import Row, isolated

SIZES = {
    "default": {"width": 32, "batch": 50, "steps": 8, "longer": 16},
    "full": {"width": 128, "batch": 100, "steps": 20, "longer": 80},
}


def gradient(
    way: str,
    precision: str = "fp32",
    width: int = 32,
    batch: int = 50,
    steps: int = 8,
    micro: int = 1,
    repeats: int = 2,
) -> dict[str, Any]:
    """One outer gradient of plain pixels by one way: `graph` (all steps at once), `exact` or `compiled`."""
    if way != "graph":
        use_threads(torch.get_num_threads())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = Spec((3, 32, 32), 10)
    net = NetConfig(depth=3, width=width).build(spec)
    rng = generator(0, "bench")
    theta = net.init(rng).to(device)
    end = theta + 0.01 * torch.randn(net.size, generator=rng).to(device)
    pixels = torch.randn(batch, *spec.shape, generator=rng).to(device).requires_grad_()
    targets = F.one_hot(torch.arange(batch) % 10, 10).float().to(device)
    lr = torch.tensor(0.02, device=device, requires_grad=True)
    augment = AugmentConfig().build()
    draws = [augment.draw(rng, batch, pixels.shape) for _ in range(steps)]
    loss = cross_entropy(net, precision)
    inner = Inner(loss, device, compile=way == "compiled", micro=micro)

    def source(i: int) -> tuple[Tensor, Tensor]:
        return augment(pixels, draws[i]), targets

    def outer() -> Tensor:
        if way == "graph":
            last = full_graph(loss, theta, source, steps, lr)
        else:
            last = unroll(inner, theta, source, steps, lr, [pixels])
        distance = (last - end).square().sum() / (theta - end).square().sum()
        found = torch.autograd.grad(distance, [pixels, lr])[0]
        if device.type == "cuda":
            torch.cuda.synchronize()
        return found

    began = time.perf_counter()
    if way == "compiled":
        inner.products(
            theta, pixels[: batch // micro * micro].detach(), targets, inner.gradient(theta, pixels.detach(), targets)
        )
    compiling = time.perf_counter() - began
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        found = outer()
        times.append(time.perf_counter() - began)
    result: dict[str, Any] = {"seconds": min(times), "compiling": compiling, "norm": float(found.norm())}
    if device.type == "cuda":
        result["gpu_peak"] = float(torch.cuda.max_memory_allocated())
    return result


def rows(size: str = "default") -> Iterator[Row]:
    s = dict(SIZES[size])
    longer = s.pop("longer")
    where = f"width={s['width']} batch={s['batch']} N={s['steps']}"
    repeats = 1 if size == "full" else 2
    graph = isolated("unroll", "gradient", way="graph", repeats=repeats, **s)
    peak = "gpu_peak" if "gpu_peak" in graph else "peak"
    yield Row("unroll", f"{where} fp32 full graph", graph["seconds"], "s", 1.0, 1.0)
    for way, precision in (("exact", "fp32"), ("compiled", "fp32"), ("compiled", "bf16")):
        ours = isolated("unroll", "gradient", way=way, precision=precision, repeats=2, **s)
        case = f"{where} {precision} {way}"
        yield Row("unroll", case, ours["seconds"], "s", graph["seconds"] / ours["seconds"], ours[peak] / graph[peak])
        if way == "compiled":
            yield Row("unroll", f"{case}: compilation", ours["compiling"], "s")
    short = isolated("unroll", "gradient", way="exact", repeats=1, **s)
    long = isolated("unroll", "gradient", way="exact", repeats=1, **(s | {"steps": longer}))
    net = NetConfig(depth=3, width=s["width"]).build(Spec((3, 32, 32), 10))
    kept = (longer - s["steps"]) * net.size * 4
    growth = (long[peak] - short[peak]) / 2**20
    yield Row(
        "unroll",
        f"{where} to N={longer}: memory added beyond stored parameters",
        growth - kept / 2**20,
        "MB",
        memory_ratio=long[peak] / (short[peak] + kept),
    )
    half = isolated("unroll", "gradient", way="exact", micro=5, repeats=1, **s)
    yield Row(
        "unroll",
        f"{where} exact, 5 micro-batches",
        half["seconds"],
        "s",
        short["seconds"] / half["seconds"],
        half[peak] / short[peak],
    )
