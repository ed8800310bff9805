"""The machine under the tensors: device, arithmetic, threads, memory, compilers, CUDA graphs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import importlib.util
import logging
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayd.errors import refuse

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Options of mallopt, as malloc.h numbers them."""
MALLOC = {M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26, M_MMAP_THRESHOLD: 2**25}
"""Bytes; the last is the most that glibc takes."""

ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""Environment of a process that computes in a thread. A thread's own arena returns memory to the system whatever mallopt
says, which cost 5 % of a step's time."""

_listener: Callable[[str], None] | None = None

CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
STATUS = Path("/proc/self/status")

__version__ = "0.1.0"
"""Of rayd; the one place where it is written."""

RECOMPILE = 1024
"""Compiled variants of one function that a process may hold; torch's own 8 end the ninth run of a notebook."""

LINKING_S = 20.0
"""Seconds: an empty library younger than this may still be being written."""


def device_kind(gpus: float) -> str:
    """cuda or cpu, as the scale says; never by what this machine has, which may be another than where the work runs."""
    return "cuda" if gpus > 0 else "cpu"


def device_for(gpus: float) -> torch.device:
    """Where an actor, worker or task with so many GPUs computes; refused where there is none."""
    if gpus > 0 and not torch.cuda.is_available():
        raise refuse("scale.gpus", gpus, "0 on a machine without a CUDA device", "see python -m jobs.doctor")
    return torch.device(device_kind(gpus))


def versions(device: torch.device | str = "cpu") -> dict[str, str]:
    """What a number may depend on in its last bits: software, and the kind of device."""
    facts = {"rayd": __version__, "torch": torch.__version__.split("+")[0]}
    if importlib.util.find_spec("ray") is not None:
        facts["ray"] = importlib.metadata.version("ray")
    if torch.device(device).type != "cuda":
        return facts | {"device": f"cpu {torch.backends.cpu.get_cpu_capability()}"}
    return facts | {"device": torch.cuda.get_device_name(), "driver": driver(), "cuda": torch.version.cuda or ""}


def driver() -> str:
    """Of the NVIDIA kernel module; empty where there is none."""
    path = Path("/proc/driver/nvidia/version")
    numbers = re.findall(r"\d+\.\d+(?:\.\d+)?", path.read_text().partition("\n")[0]) if path.is_file() else []
    return numbers[0] if numbers else ""


@contextlib.contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """fp32 means fp32: TF32 only under precision=tf32, and convolutions that repeat their bits; as it was, afterwards.

    torch's own default computes convolutions in TF32 on Ampere and later, ten bits of mantissa for 23.
    """
    places: list[tuple[Any, str, bool]] = [
        (torch.backends.cuda.matmul, "allow_tf32", precision == "tf32"),
        (torch.backends.cudnn, "allow_tf32", precision == "tf32"),
        (torch.backends.cudnn, "deterministic", True),
        (torch.backends.cudnn, "benchmark", False),
    ]
    before = [getattr(place, name) for place, name, _ in places]
    for place, name, value in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name, _), value in zip(places, before, strict=True):
            setattr(place, name, value)


def free_memory(device_type: str) -> int:
    """Bytes that a process can still take: on a GPU those of the device, else those of the host and its control group.
    0 for a GPU that is not here."""
    if device_type == "cuda":
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    host = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        return min(host, max(0, int(most) - int(used.read_text())))
    return host


def out_of_memory(error: BaseException) -> str:
    """What ran out, where an error says that memory did; empty for every other error."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return text.splitlines()[0][:200] if text else "no more memory"
    return ""


def release() -> None:
    """After memory ran out: what is held only by garbage and by the allocator goes back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def use_threads(threads: int) -> None:
    """Set the number of threads, and keep freed memory in this process.

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


def memory(device: torch.device) -> int:
    """Bytes that a device has: the GPU's, or this machine's, less where a container is allowed less."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in CONTAINER_LIMITS:
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total


def peak_memory(device_type: str) -> int:
    """Bytes: the largest allocation of the GPU, or the largest resident size of this process.

    VmHWM, because a child's `ru_maxrss` starts at its parent's resident size: exec keeps it.
    """
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated()
    if STATUS.is_file():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@cache
def can_compile(device_type: str) -> bool:
    """Whether torch.compile finds its compiler; logs once where it does not."""
    if device_type == "cuda":
        available, compiler = importlib.util.find_spec("triton") is not None, "triton"
    else:
        available = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
        compiler = "a C++ compiler (g++ or clang++)"
    if not available:
        log.warning("compile=true, but %s was not found: running eagerly, several times slower", compiler)
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    sweep(Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir()))
    return available


def sweep(cache: Path) -> None:
    """Remove the empty libraries that killed compilers left: every later process would fail on them."""
    for library in cache.glob("*/*.so"):
        with contextlib.suppress(FileNotFoundError):
            stat = library.stat()
            if stat.st_size == 0 and time.time() - stat.st_mtime > LINKING_S:
                library.unlink()


def compiled(fn: Callable[..., Any], device: torch.device, on: bool = True, graphs: bool = False) -> Callable[..., Any]:
    """`fn` compiled for fixed shapes; on a GPU also captured as a CUDA graph where `graphs` is set."""
    if on and can_compile(device.type):
        fn = many_variants(torch.compile(fn, dynamic=False, fullgraph=True))
    return Captured(fn) if graphs and device.type == "cuda" else fn


def many_variants(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function with room for the variants of every run of a process: torch counts those of a line of code."""
    limits = {"recompile_limit": RECOMPILE, "accumulated_recompile_limit": RECOMPILE}

    def call(*arguments: Any) -> Any:
        with torch._dynamo.config.patch(limits):
            return fn(*arguments)

    return call


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
        for buffer, tensor in zip(inputs, tensors, strict=True):
            buffer.copy_(tensor)
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
