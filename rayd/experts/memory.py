"""How much memory a unit of experts takes, by arithmetic, and the micro-batch that fits.

The step is run on tensors without data, and every allocation that is alive is counted: exact for eager arithmetic, an
upper bound for compiled arithmetic, which keeps less.

Shapes: K experts at once, B images of a batch, P parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rayd.errors import refuse
from rayd.nets.convnet import Net

if TYPE_CHECKING:
    from rayd.experts.config import ExpertConfig


class Meter(TorchDispatchMode):
    """Bytes alive among the results of all operations, now and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


COMPILED = 0.4
"""Of what eager arithmetic holds; 0.36 in fp32 and 0.21 in bf16 were measured (ConvNet, 64 px, 5 x 32 images)."""
SCRATCH = 1.15
"""What kernels and the allocator take beyond the tensors: measured as much on a CPU."""
SPARE = 0.8
"""Of the free memory that a plan may use."""
VIEWS = (3, 5)
"""Copies of a batch in fp32 that are there during a step, and while it is augmented."""
STATE = 6
"""Vectors of an expert: parameters, gradient, its sum, velocity, and two in passing."""


def step_bytes(config: ExpertConfig, net: Net, experts: int, images: int) -> int:
    """At most alive in one gradient of `experts` networks on `images` each."""
    from rayd.experts.train import DTYPES, loss_gradient

    dtype = DTYPES[config.precision]
    theta_KP = torch.empty(experts, net.size, device="meta")
    x = torch.empty(experts, images, *net.spec.shape, dtype=dtype, device="meta")
    y_KB = torch.empty(experts, images, dtype=torch.int64, device="meta")
    with Meter() as meter:
        vmap(loss_gradient(net, dtype))(theta_KP, x, y_KB)
    return int(meter.peak * (COMPILED if config.compiled else 1.0))


def unit_bytes(config: ExpertConfig, net: Net, experts: int, images: int, resident: int) -> int:
    """Of a stacked unit whose steps go through `images` of each expert at a time; `resident`: bytes of the training set."""
    batch = 4 * experts * config.batch * net.spec.floats
    step = step_bytes(config, net, experts, images) + STATE * 4 * experts * net.size
    return resident + round(SCRATCH * max(step + VIEWS[0] * batch, VIEWS[1] * batch))


def micro_batch(config: ExpertConfig, net: Net, resident: int, room: float) -> int:
    """The most images of each expert, a divisor of the batch, with which a stacked unit stays within `room` bytes."""
    experts, least = min(config.per_shard, config.experts), 0
    for images in sorted((part for part in range(1, config.batch + 1) if config.batch % part == 0), reverse=True):
        least = unit_bytes(config, net, experts, images, resident)
        if least <= room:
            return images
    allowed = (
        f"fewer: {experts} experts with an image each take {least / 2**30:.3g} GiB, and there are {room / 2**30:.3g}"
    )
    raise refuse("expert.per_shard", config.per_shard, allowed, "or lower expert.batch, or set expert.engine=single")
