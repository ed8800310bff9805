"""What decoding a minibatch costs beside the network's forward and backward on the same images.

Every codec at its default dials. `decode` is the forward alone (twice a step of an inner loop: to step and to replay),
and `decode+grad` adds the way back to the factors (once). The plain way is the network, of which decoding should
take less than 15 %.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from rayd.data.images import Spec
from rayd.distill.budget import Budget
from rayd.methods.haba import Haba
from rayd.methods.idc import Formation
from rayd.methods.lodc import Lodc
from rayd.methods.lss import Lss
from rayd.methods.nsd import Nsd
from rayd.methods.pixel import Pixel
from rayd.nets.convnet import NetConfig
from rayd.seeds import generator
from rayd.studies.bench import Row

CODECS: dict[str, Any] = {
    "pixel": Pixel.Config(),
    "lodc": Lodc.Config(),
    "lss": Lss.Config(),
    "lss one side": Lss.Config(sides="one"),
    "nsd": Nsd.Config(),
    "nsd global": Nsd.Config(scope="global"),
    "haba": Haba.Config(),
    "formation of pixel": Formation.Config(),
}
CIFAR, NETTE = Spec((3, 32, 32), 10), Spec((3, 128, 128), 10)
SIZES: dict[str, list[tuple[Spec, float, int, int, int]]] = {
    "default": [(CIFAR, 1, 100, 32, 3), (CIFAR, 10, 100, 32, 3)],
    "full": [(CIFAR, 1, 256, 128, 3), (CIFAR, 10, 256, 128, 3), (CIFAR, 50, 500, 128, 3), (NETTE, 1, 20, 128, 5)],
}
"""(spec, ipc, minibatch, width, depth)"""
REPEATS = 15


def rows(size: str = "default") -> Iterator[Row]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for spec, ipc, batch, width, depth in SIZES[size]:
        where = f"{spec.shape[-1]}px ipc={ipc:g} w{width}"
        images = torch.randn(batch, *spec.shape, generator=generator(0, "bench")).to(device)
        plain = network(spec, images, width, depth)
        yield Row("codecs", f"network {where}", 1e3 * plain, "ms")
        for name, config in CODECS.items():
            codec = config.fit(Budget(ipc=ipc), spec).build(spec, generator(0, "codec")).to(device)
            index = codec.draws(generator(0, "index"), min(batch, len(codec)), 1)[0]
            leaves = [p for player in codec.players() for p in player.params]
            share = plain * len(index) / batch

            def forward(codec: Any = codec, index: torch.Tensor = index) -> None:
                with torch.no_grad():
                    codec.decode(index)

            def both(codec: Any = codec, index: torch.Tensor = index, leaves: Any = leaves) -> None:
                decoded = codec.decode(index)[0]
                torch.autograd.grad(decoded, leaves, torch.ones_like(decoded))

            for what, run in (("decode", forward), ("decode+grad", both)):
                seconds = timed(run, device)
                yield Row("codecs", f"{name} {what} {where}", 100 * seconds / share, "% of network", share / seconds)


def network(spec: Spec, images: torch.Tensor, width: int, depth: int) -> float:
    """Seconds of a forward and backward, down to parameters and images."""
    net = NetConfig(name="convnet", depth=depth, width=width).build(spec)
    theta_P = net.init(generator(0, "net")).to(images.device).requires_grad_()
    x = images.clone().requires_grad_()
    labels = torch.arange(len(x), device=x.device) % spec.classes

    def step() -> None:
        torch.autograd.grad(F.cross_entropy(net(theta_P, x), labels), [theta_P, x])

    return timed(step, images.device)


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Median seconds."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(REPEATS + 3):
        wait()
        began = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:])
