"""Several workers of one distillation in one process: threads that meet in their `reduce`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rayd.distill.loop import Distillation, Reduce, Step, identity


class Meeting:
    """Sums the flat vectors of `size` workers, in order of rank; counts the bytes of one of them, the last and in all."""

    def __init__(self, size: int) -> None:
        self.size, self.bytes, self.total = size, 0, 0
        self.parts: dict[int, Tensor] = {}
        self.groups: dict[tuple[int, ...], Meeting] = {}
        self.lock = threading.Lock()
        self.barrier = threading.Barrier(size, timeout=120)

    def reduce(self, rank: int) -> Reduce:
        def meet(flat: Tensor) -> Tensor:
            if rank == 0:
                self.bytes, self.total = (
                    flat.numel() * flat.element_size(),
                    self.total + flat.numel() * flat.element_size(),
                )
            self.parts[rank] = flat
            self.barrier.wait()
            total = torch.stack([self.parts[r] for r in range(self.size)]).sum(0)
            self.barrier.wait()
            return total

        return meet

    def group(self, rank: int) -> Callable[[Sequence[int]], Reduce]:
        """As `Worker.group`: the sums of each group are meetings of their own."""

        def among(ranks: Sequence[int]) -> Reduce:
            with self.lock:
                meeting = self.groups.setdefault(tuple(ranks), Meeting(len(ranks)))
            return meeting.reduce(ranks.index(rank)) if rank in ranks else identity

        return among


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
