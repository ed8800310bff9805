"""Several workers of one distillation in one process: threads that meet in their `reduce`."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from rayd.distill.loop import Distillation, Reduce, Step


class Meeting:
    """Sums the flat vectors of `size` workers, in order of rank; counts the bytes of one of them."""

    def __init__(self, size: int) -> None:
        self.size, self.bytes = size, 0
        self.parts: dict[int, Tensor] = {}
        self.barrier = threading.Barrier(size, timeout=120)

    def reduce(self, rank: int) -> Reduce:
        def meet(flat: Tensor) -> Tensor:
            if rank == 0:
                self.bytes = flat.numel() * flat.element_size()
            self.parts[rank] = flat
            self.barrier.wait()
            total = torch.stack([self.parts[r] for r in range(self.size)]).sum(0)
            self.barrier.wait()
            return total

        return meet


def run_workers(
    size: int, make: Callable[[tuple[int, int], Reduce], Distillation]
) -> tuple[list[Distillation], list[Step]]:
    """The workers' distillations after all steps, and the steps that worker 0 took."""
    meeting = Meeting(size)
    workers = [make((rank, size), meeting.reduce(rank)) for rank in range(size)]
    steps: dict[int, list[Step]] = {}
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            steps[rank] = list(workers[rank].run())
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return workers, steps[0]
