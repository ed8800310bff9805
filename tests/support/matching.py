"""What tests of objectives share: small settings, random vectors, a distillation of tiny pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rayd.data.augment import AugmentConfig
from rayd.distill.loop import Distillation, OptimiserConfig, Reduce, identity
from rayd.methods.ncfm import PsiConfig
from rayd.seeds import generator
from tests.support.worlds import TinyPixels, TinyWorld

QUIET = AugmentConfig(ops=(), share="batch")
PSI = PsiConfig(per_component=4, lr=0.01)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "test"), dtype=torch.float64)


def distillation(
    config: Any, terms: tuple[Any, ...] = (), steps: int = 5, share: tuple[int, int] = (0, 1), reduce: Reduce = identity
) -> Distillation:
    inputs = TinyWorld()
    codec = TinyPixels(inputs)
    rates = OptimiserConfig(name="sgd", lr=0.05)
    built = [term.build(inputs, codec) for term in terms]
    return Distillation(
        codec, config.build(inputs), built, steps=steps, optimiser=rates, inputs=inputs, share=share, reduce=reduce
    )


def pixels(work: Distillation) -> Tensor:
    return work.codec.decode(torch.arange(len(work.codec)))[0].detach()
