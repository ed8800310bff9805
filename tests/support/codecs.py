"""The codecs that tests go through: their configurations, the images they start from, how one is built."""

from __future__ import annotations

import torch

from rayd.data.images import Spec
from rayd.distill.budget import Budget
from rayd.methods.haba import Haba
from rayd.methods.idc import Formation
from rayd.methods.lodc import Lodc
from rayd.methods.lss import Lss
from rayd.methods.nsd import Nsd
from rayd.methods.pixel import Pixel

SPEC = Spec((3, 16, 16), 4)
CELLS = {
    "CIFAR-10": (Spec((3, 32, 32), 10), (1, 10, 50)),
    "CIFAR-100": (Spec((3, 32, 32), 100), (1, 10)),
    "Tiny": (Spec((3, 64, 64), 200), (1,)),
    "128px": (Spec((3, 128, 128), 10), (1, 10)),
    "digits": (Spec((1, 8, 8), 10), (1, 10)),
}
CONFIGS = {
    "pixel": Pixel.Config(),
    "lodc": Lodc.Config(),
    "lss": Lss.Config(),
    "lss-one": Lss.Config(sides="one"),
    "lss-global": Lss.Config(scope="global", labels="soft"),
    "nsd": Nsd.Config(),
    "nsd-global": Nsd.Config(scope="global", labels="soft"),
    "nsd-mixed": Nsd.Config(channels="mixed", basis="svd", blend="pick"),
    "nsd-random": Nsd.Config(basis="random", labels="soft"),
    "haba": Haba.Config(labels="soft"),
    "formation": Formation.Config(under=Pixel.Config()),
    "formation-lodc": Formation.Config(under=Lodc.Config(rank=4, labels="soft")),
    "formation-haba": Formation.Config(under=Haba.Config()),
}


def smooth(spec: Spec):
    """take(c, n): images with a shape of their own class, the same each time."""

    def take(c: int, n: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(c)
        coarse = torch.randn(n, spec.shape[0], 4, 4, generator=rng)
        return torch.nn.functional.interpolate(coarse, size=spec.shape[-2:], mode="bicubic")

    return take


def built(config, spec=SPEC, budget=None, start=True):
    config = config.fit(budget or Budget(ipc=3), spec)
    codec = config.build(spec, torch.Generator().manual_seed(0))
    if start:
        codec.encode(smooth(spec), torch.Generator().manual_seed(1))
    return codec
