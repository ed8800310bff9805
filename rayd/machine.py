"""The machine under the tensors: threads, memory, whether a compiler is at hand, CUDA graphs. One place knows them."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MALLOC = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}
"""M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD (the most it takes) of malloc.h, in bytes."""

ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""For the environment of a process that computes in a thread: a thread's own arena gives memory back whatever mallopt says,
which cost another twentieth."""

_listener: Callable[[str], None] | None = None

LINKING_S = 20.0
"""For so long an empty library may be one that is being written."""


def use_threads(threads: int) -> None:
    """This process as the plan wants it: so many threads, and freed memory kept at hand.

    glibc returns freed pages to the system and faults them in again at the next step, which cost a quarter of a CPU
    step's time. Without glibc nothing is changed.
    """
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, size in MALLOC.items():
            mallopt(option, size)


def beat(note: str) -> None:
    """Say that the work of this process goes on; called at every step, batch and network, whoever may listen."""
    if _listener is not None:
        _listener(note)


def on_beat(listener: Callable[[str], None] | None) -> None:
    """Let `listener` hear the beats of this process; None: nobody."""
    global _listener
    _listener = listener


def peak_memory(device_type: str) -> int:
    """Bytes: on a GPU the most that was allocated, else the most this process has held in memory."""
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@cache
def can_compile(device_type: str) -> bool:
    """Whether torch.compile has what it needs here; says so once where it has not."""
    if device_type == "cuda":
        found, lacks = importlib.util.find_spec("triton") is not None, "triton"
    else:
        found = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
        lacks = "a C++ compiler (g++ or clang++)"
    if not found:
        log.warning("compile=true, but %s was not found: running eagerly, several times slower", lacks)
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    sweep(Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir()))
    return found


def sweep(cache: Path) -> None:
    """A process killed while it was compiling leaves an empty library behind, on which every later one would fail."""
    for library in cache.glob("*/*.so"):
        with contextlib.suppress(FileNotFoundError):
            held = library.stat()
            if held.st_size == 0 and time.time() - held.st_mtime > LINKING_S:
                library.unlink()


def compiled(fn: Callable[..., Any], device: torch.device, on: bool = True, graphs: bool = False) -> Callable[..., Any]:
    """`fn` compiled for fixed shapes; on a GPU also captured as a CUDA graph where `graphs` is set."""
    if on and can_compile(device.type):
        fn = torch.compile(fn, dynamic=False, fullgraph=True)
    return Captured(fn) if graphs and device.type == "cuda" else fn


class Captured:
    """A function of tensors replayed as a CUDA graph, one capture per signature of shapes.

    Captured by hand and not by torch.compile's own graph trees because those live in one thread, and autograd calls
    backward from another. Inputs are copied into fixed buffers; outputs are valid until the next call.
    """

    warmups = 3

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.captures: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = {}

    def __call__(self, *tensors: Tensor) -> Any:
        key = tuple((tuple(t.shape), t.dtype) for t in tensors)
        if key not in self.captures:
            self.captures[key] = self._capture(tensors)
        graph, inputs, outputs = self.captures[key]
        for fixed, given in zip(inputs, tensors, strict=True):
            fixed.copy_(given)
        graph.replay()
        return outputs

    def _capture(self, tensors: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any]:
        inputs = [t.detach().clone() for t in tensors]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self.warmups):
                self.fn(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self.fn(*inputs)
        return graph, inputs, outputs
