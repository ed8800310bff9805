"""Blocks of a planned order, read ahead from disk: how images are used that are not held in memory.

A block is `pixels[index]` to the byte, so streamed and resident training see the same images in the same order.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor

from rayd.data.images import Pixels
from rayd.machine import memory
from rayd.numbers import size_text

log = logging.getLogger(__name__)

AHEAD = 2
"""Blocks read while one is used; so many and one more are in memory."""
SHARE = 0.5
"""Images that take more of a device's memory than this are streamed."""

Residence = Literal["auto", "resident", "streamed"]


def is_streamed(pixels_NCHW: Tensor | Pixels, device: torch.device, residence: Residence = "auto") -> bool:
    """Whether images are read by blocks from disk rather than held on the device; `auto` goes by size and memory."""
    room = memory(device)
    streamed = pixels_NCHW.numel() > SHARE * room if residence == "auto" else residence == "streamed"
    log.info("images  %s: %s of %s on the %s (%s)", "streamed" if streamed else "resident",
             size_text(pixels_NCHW.numel()), size_text(room), device.type, residence)  # fmt: skip
    return streamed


def blocks(
    pixels_NCHW: Tensor | Pixels, order: Iterable[Tensor], device: torch.device | str = "cpu", ahead: int = AHEAD
) -> Iterator[Tensor]:
    """The images of each index of `order` in turn, as uint8 on the device; the next ones are read meanwhile."""
    device = torch.device(device)

    def read(index: Tensor) -> Tensor:
        block = pixels_NCHW[index.cpu()]
        return block.pin_memory() if device.type == "cuda" else block

    waiting: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(max(ahead, 1), "read ahead") as pool:
        try:
            for index in order:
                waiting.append(pool.submit(read, index))
                if len(waiting) > ahead:
                    yield waiting.popleft().result().to(device, non_blocking=True)
            while waiting:
                yield waiting.popleft().result().to(device, non_blocking=True)
        finally:
            for future in waiting:
                future.cancel()
