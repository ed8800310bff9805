"""Blocks of a planned order: the same bytes as the whole set in memory, a bounded number of them, read ahead."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from rayd.data.images import Pixels
from rayd.data.stream import blocks, is_streamed

PIXELS = torch.randint(0, 256, (50, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
ORDER = torch.randperm(50, generator=torch.Generator().manual_seed(1)).split(8)


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
def test_streamed_is_resident_to_the_byte(ahead: int) -> None:
    mapped = Pixels(PIXELS.split([20, 1, 29]))
    streamed = list(blocks(mapped, ORDER, ahead=ahead))
    assert [len(block) for block in streamed] == [8] * 6 + [2]
    assert all(torch.equal(block, PIXELS[index]) for block, index in zip(streamed, ORDER, strict=True))
    assert list(blocks(mapped, [])) == []


class Watched:
    """Pixels that say which reads began, and let each end only when it may."""

    def __init__(self) -> None:
        self.begun = 0
        self.changed = threading.Condition()
        self.gate = threading.Event()

    def __getitem__(self, index: Any) -> Any:
        with self.changed:
            self.begun += 1
            self.changed.notify_all()
        self.gate.wait(10)
        return PIXELS[index]

    def wait_for(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.begun >= count, 10)


def test_two_blocks_are_read_while_one_is_used_and_no_more() -> None:
    watched = Watched()
    watched.gate.set()
    stream = blocks(watched, ORDER)  # type: ignore[arg-type]
    next(stream)
    assert watched.wait_for(3), "the next two are read without being asked for"
    assert watched.begun == 3
    next(stream)
    assert watched.wait_for(4) and watched.begun == 4
    stream.close()
    assert watched.begun <= 4, "nothing is read after the end"


def test_an_error_of_the_disk_reaches_the_reader() -> None:
    class Broken:
        def __getitem__(self, index: Any) -> Any:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        next(blocks(Broken(), ORDER))  # type: ignore[arg-type]


def test_which_images_are_streamed_follows_from_size_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("rayd.data.stream.memory", lambda device: 2 * PIXELS.numel())
    assert not is_streamed(PIXELS, cpu) and is_streamed(PIXELS, cpu, "streamed")
    monkeypatch.setattr("rayd.data.stream.memory", lambda device: 2 * PIXELS.numel() - 1)
    assert is_streamed(PIXELS, cpu) and not is_streamed(PIXELS, cpu, "resident")
