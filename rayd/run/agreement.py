"""What the workers of one distillation tell each other beside gradients: worker 0's decisions, and that all hold the same.

Both use the sum over workers that the loop needs anyway. A number that one worker decides is that worker's number plus
everybody else's zeros. For the check, each worker writes its step and a hash of its parameters into a place of its own.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rayd.distill.loop import Distillation, Reduce, State
from rayd.errors import Failed


class AllReduce:
    """Sums a flat vector over the workers, or some of them; counts what it sent and how long it waited for the others."""

    def __init__(self, among: Any = None) -> None:
        self.among, self.groups = among, list[AllReduce]()
        self.bytes = 0
        self.calls = 0
        self.seconds = 0.0

    def __call__(self, flat: Tensor) -> Tensor:
        self.bytes += flat.numel() * flat.element_size()
        self.calls += 1
        began = time.perf_counter()
        dist.all_reduce(flat, group=self.among)
        if flat.is_cuda:  # which is read at once anyway
            torch.cuda.synchronize(flat.device)
        self.seconds += time.perf_counter() - began
        return flat

    def group(self, ranks: Sequence[int]) -> AllReduce:
        """The sum over these workers. All workers ask for it, whether they are of them or not."""
        self.groups.append(AllReduce(dist.new_group(list(ranks))))
        return self.groups[-1]

    @property
    def bytes_per_step(self) -> float:
        """Of one sum over all workers, and of those that groups take in between."""
        return (self.bytes + sum(group.bytes for group in self.groups)) / max(self.calls, 1)


class Agreement:
    """Sums a flat vector over the workers, and ends the run where they are not at one step with the same parameters."""

    def __init__(self, rank: int, size: int, reduce: Reduce, device: torch.device) -> None:
        self.rank, self.size, self.reduce, self.device = rank, size, reduce, device
        self.work: Distillation | None = None
        """Whose state it is about; there is none before the parts are assembled."""

    def __call__(self, flat: Tensor) -> Tensor:
        if self.size == 1:
            return self.reduce(flat)
        assert self.work is not None
        places = flat.new_zeros(self.size, 2)
        places[self.rank, 0], places[self.rank, 1] = self.work.number, hash_of(self.work)
        total = self.reduce(torch.cat([flat, places.flatten()]))
        check(total[len(flat) :].view(self.size, 2).tolist())
        return total[: len(flat)]

    def share(self, numbers: Sequence[float]) -> list[float]:
        """Worker 0's numbers, on every worker."""
        if self.size == 1:
            return list(numbers)
        count = int(self._sum(torch.tensor([float(len(numbers))]))[0])
        vector = torch.zeros(count) if self.rank else torch.tensor(numbers, dtype=torch.float64)
        return self._sum(vector).tolist()

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sum of everybody's numbers, place by place, on every worker."""
        if self.size == 1:
            return list(numbers)
        vector: list[float] = self.reduce(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist()
        return vector

    def share_state(self) -> None:
        """Worker 0's state, on every worker: a start computed on another kind of processor may differ in its last bits."""
        if self.size == 1:
            return
        assert self.work is not None
        state = self.work.state()
        flat = torch.cat([tensor.detach().double().flatten().cpu() for tensor in state.values()])
        flat, shared, at = self._sum(flat), State(), 0
        for name, tensor in state.items():
            shared[name] = flat[at : at + tensor.numel()].view(tensor.shape).to(tensor)
            at += tensor.numel()
        self.work.load(shared)

    def _sum(self, vector: Tensor) -> Tensor:
        """Worker 0's vector."""
        mine = vector.double().to(self.device)
        return self.reduce(mine if self.rank == 0 else torch.zeros_like(mine)).cpu()


def hash_of(work: Distillation) -> int:
    """CRC-32 of every parameter's bytes; a bit that differs anywhere changes it."""
    total = 0
    for player in work.players:
        for parameter in player.params:
            total = zlib.crc32(parameter.detach().flatten().cpu().numpy().data, total)
    return total


def check(places: Sequence[Sequence[float]]) -> None:
    """Refuse to go on where the workers differ. `places`: step and hash of each."""
    if all(list(place) == list(places[0]) for place in places):
        return
    rows = (f"worker {rank}: step {int(step)}, parameters {int(crc):08x}" for rank, (step, crc) in enumerate(places))
    raise Failed(
        f"the workers do not hold the same parameters ({'; '.join(rows)}); nothing of this step is kept. Submit again: "
        "it goes on from the last checkpoint. If it happens again, one of the machines computes wrongly"
    )
