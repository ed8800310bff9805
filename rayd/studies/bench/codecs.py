"""What decoding a minibatch costs beside the network's forward and backward on the same images.

Every codec at its default dials. `decode` is the forward alone (twice a step of an inner loop: to step and to replay),
and `decode+grad` adds the way back to the factors (once). `through` is what a step through the storage adds, over the
images of its INNER inner steps: the numbers that the file would hold, and those behind them put back. The reference is the
network over torch.nn, of which decoding should take less than 15 %. The floor is reading plain pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.distill.budget import Budget
from rayd.distill.contract import Codec
from rayd.methods.haba import Haba
from rayd.methods.idc import Formation
from rayd.methods.jpeg import Jpeg
from rayd.methods.lodc import Lodc
from rayd.methods.lss import Lss
from rayd.methods.nsd import Nsd
from rayd.methods.pixel import Pixel
from rayd.seeds import generator
from rayd.studies.bench import BenchRow, interleaved, pairs
from rayd.studies.bench.field import convnet

FAMILIES: dict[str, Any] = {"pixel": Pixel, "lodc": Lodc, "lss": Lss, "nsd": Nsd, "haba": Haba}
CODECS: dict[str, Any] = {
    "pixel": Pixel.Config(),
    "lodc": Lodc.Config(),
    "lss": Lss.Config(),
    "lss one side": Lss.Config(sides="one"),
    "nsd": Nsd.Config(),
    "nsd global": Nsd.Config(scope="global"),
    "haba": Haba.Config(),
    "formation of pixel": Formation.Config(),
    "jpeg": Jpeg.Config(),
    "jpeg soft int4": Jpeg.Config(labels="soft", storage="int4"),
    **{f"{name} {kind}": part.Config(storage=kind) for name, part in FAMILIES.items() for kind in ("int8", "int4")},
}
CIFAR, NETTE = Spec((3, 32, 32), 10), Spec((3, 128, 128), 10)
SIZES: dict[str, list[tuple[Spec, float, int, int, int]]] = {
    "default": [(CIFAR, 1, 100, 32, 3), (CIFAR, 10, 100, 32, 3)],
    "full": [(CIFAR, 1, 256, 128, 3), (CIFAR, 10, 256, 128, 3), (CIFAR, 50, 500, 128, 3), (NETTE, 1, 20, 128, 5)],
}
"""(spec, ipc, minibatch, width, depth)"""
TURNS = 15
INNER = 20


def rows(size: str = "default") -> Iterator[BenchRow]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for spec, ipc, batch, width, depth in SIZES[size]:
        where = f"{spec.shape[-1]}px ipc={ipc:g} w{width}"
        images = torch.randn(batch, *spec.shape, generator=generator(0, "bench")).to(device).requires_grad_()
        ways: dict[str, Callable[[], float]] = {
            "network": partial(network, convnet(width, depth, spec.shape[-1]).to(device), images)
        }
        for name, config in CODECS.items():
            codec = fitted(config, spec, ipc).to(device)
            index = codec.draws(generator(0, "index"), min(batch, len(codec)), 1)[0]
            ways |= {
                f"{name} decode": partial(decode, codec, index),
                f"{name} decode+grad": partial(both, codec, index),
            }
            if name == "jpeg" or "int" in name:
                ways[f"{name} through"] = partial(through, codec, INNER * batch)
        by_way = interleaved(ways, TURNS)
        reference = by_way.pop("network")
        yield BenchRow(bench="codecs", case=f"network {where}", value=1e6 * reference.seconds, unit="us an image")
        for name, timing in by_way.items():
            ratio, noisy = pairs(reference.wall, timing.wall)
            cpu = pairs(reference.cpu, timing.cpu)[0] if min(timing.cpu) > 0 else None
            plain = by_way.get(f"pixel {name.split()[-1]}")
            floor = pairs(plain.wall, timing.wall)[0] if plain is not None else None
            yield BenchRow(bench="codecs", case=f"{name} {where}", value=100 / ratio, unit="% of network", ratio=ratio,
                      cpu_ratio=cpu, floor=floor, noisy=noisy)  # fmt: skip


def fitted(config: Any, spec: Spec, ipc: float) -> Codec:
    """Within the bytes of so many fp32 images a class: by count there is no room for the scales of whole numbers."""
    budget = Budget(bytes=Budget(ipc=ipc).file_size(spec))
    codec: Codec = config.fit(budget, spec).build(spec, generator(0, "codec"))
    codec.enter(Transform("none", torch.zeros(spec.shape[0]), torch.ones(spec.shape[0])), budget)
    return codec


def network(net: nn.Module, images: Tensor) -> float:
    """A forward and backward, down to parameters and images."""
    labels = torch.arange(len(images), device=images.device) % 10
    torch.autograd.grad(F.cross_entropy(net(images), labels), [*net.parameters(), images])
    return len(images)


def decode(codec: Codec, index_N: Tensor) -> float:
    with torch.no_grad():
        codec.decode(index_N)
    return len(index_N)


def both(codec: Codec, index_N: Tensor) -> float:
    leaves = [p for player in codec.players() for p in player.params]
    images, labels = codec.decode(index_N)
    torch.autograd.grad(images.sum() + labels.sum(), leaves)
    return len(index_N)


@torch.no_grad()
def through(codec: Codec, images: int) -> float:
    """To the numbers that a file would hold, and back."""
    behind = [(p, p.detach().clone()) for p in codec.parameters()]
    codec.quantise()
    for p, kept in behind:
        p.copy_(kept)
    return images
