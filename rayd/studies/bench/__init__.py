"""Timing, in one place. Every row is a ratio against what one would run otherwise, measured in the same run.

    experts       images per second of expert training, against torch.nn modules; floor: the convolutions alone
    unroll        one outer gradient, against the graph of all inner steps over torch.nn; floor: 3.5 plain steps
    codecs        decoding a minibatch, against forward and backward of the network
    objectives    a step of each objective, against the papers' loops; memory
    evaluate      five networks, against the same five one after another over torch.nn
    buffer        reading segments, against scanning a shard; floor: the disk
    scaling       actors and workers, against one; Ray Train, against inline
    trust         a step whose workers compare their parameters, a score that is kept, against none of it
    field         the torch.nn network that the ratios are against

A bench has `rows(size) -> Iterator[BenchRow]`. Ways that are compared take turns in one process (`interleaved`): a ratio
is the median over the pairs of a turn. It is marked noisy where the middle half of the pairs spreads by more than a tenth,
and where other processes have a tenth of the machine: they take its caches and memory, which moves ratios that do not
scatter. What needs two cores is not run where they are not free. CPU seconds stand beside wall seconds. Peak memory
needs a process of its own: `isolated("unroll", "peak", width=128)` calls that module's `peak(width=128)`, which returns a
dict, and adds `peak` (resident bytes above those after the imports).
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from rayd.errors import Failed
from rayd.machine import peak_memory, use_threads

BENCHES = ("experts", "unroll", "codecs", "objectives", "evaluate", "buffer", "scaling", "trust")
THREADS = 1
"""As a job has them; several would wait for the one whose core another job has."""
CORES = {"scaling": 2}
"""That a bench needs for itself."""
TURNS = 5
NOISY = 0.1
"""Spread of the middle half of the pairs, as a share of their median, above which a ratio is marked; and other processes'
share of the cores."""
HEAD = f"{'bench':<11}{'case':<58}{'value':>10} {'unit':<14}{'ratio':>7}{'cpu':>7}{'floor':>7}{'memory':>8}"


@dataclass(frozen=True)
class Timing:
    """Seconds of one way for a unit of its work, a turn each."""

    wall: Sequence[float]
    cpu: Sequence[float]
    first: float
    """Of the turn before the others, compilation included."""

    @property
    def seconds(self) -> float:
        return median(self.wall)

    @property
    def compilation(self) -> float:
        return self.first - self.seconds


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    bench: str
    case: str
    """The settings: `width=128 bf16`."""
    value: float
    unit: str
    ratio: float | None = None
    """Against what one would run otherwise; above 1 is better."""
    cpu_ratio: float | None = None
    """The same in CPU seconds of all threads."""
    floor: float | None = None
    """Seconds of the floor beside these: 1 is as fast as the floor."""
    memory_ratio: float | None = None
    """Peak memory against the same; below 1 is better."""
    noisy: bool = False

    def json(self) -> str:
        return json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()})

    def line(self) -> str:
        """Under HEAD."""
        ratios = ((self.ratio, 7), (self.cpu_ratio, 7), (self.floor, 7), (self.memory_ratio, 8))
        cells = "".join(f"{'' if ratio is None else f'{ratio:.2f}':>{width}}" for ratio, width in ratios)
        return f"{self.bench:<11}{self.case:<58}{self.value:>10.4g} {self.unit:<14}{cells}{'  noisy' if self.noisy else ''}"


def pairs(reference: Sequence[float], way: Sequence[float]) -> tuple[float, bool]:
    """The median ratio of the pairs, and whether they scatter."""
    ratios = [a / b for a, b in zip(reference, way, strict=True)]
    low, middle, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return middle, (high - low) / middle > NOISY


def others(seconds: float = 1.0) -> float:
    """Cores that other processes have; 0 where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0

    def ticks() -> tuple[int, int]:
        every = list(map(int, stat.read_text().split("\n", 1)[0].split()[1:9]))
        return sum(every), sum(every) - every[3] - every[4]

    whole, used = ticks()
    time.sleep(seconds)
    later, by_all = ticks()
    return (os.cpu_count() or 1) * (by_all - used) / max(1, later - whole)


def compared(bench: str, case: str, way: Timing, reference: Timing | None, *, floor: Timing | None = None,
             unit: str = "s", rate: bool = False, memory_ratio: float | None = None) -> BenchRow:  # fmt: skip
    """A row of one way against the reference. `rate`: units of work in a second instead of seconds."""
    ratio, noisy = pairs(reference.wall, way.wall) if reference else (None, False)
    return BenchRow(
        bench=bench,
        case=case,
        value=1 / way.seconds if rate else way.seconds,
        unit=unit,
        ratio=ratio,
        cpu_ratio=pairs(reference.cpu, way.cpu)[0] if reference and min(way.cpu) > 0 else None,
        floor=pairs(floor.wall, way.wall)[0] if floor else None,
        memory_ratio=memory_ratio,
        noisy=noisy,
    )


def interleaved(
    ways: Mapping[str, Callable[[], Any]], turns: int = TURNS, work: float | None = None
) -> dict[str, Timing]:
    """All ways in turn, so that whatever else the machine does falls on all; the first turn of each is not counted.

    A way returns how many units of work it did, unless all do `work`; None: one.
    """
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns + 1):
        for name, way in ways.items():
            began, cpu_began = time.perf_counter(), time.process_time()
            units = way()
            units = work or units or 1.0
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            wall[name].append((time.perf_counter() - began) / units)
            cpu[name].append((time.process_time() - cpu_began) / units)
    return {name: Timing(wall[name][1:], cpu[name][1:], wall[name][0]) for name in ways}


def rows(name: str, size: str = "default") -> Iterator[BenchRow]:
    use_threads(THREADS)
    cores, taken = os.cpu_count() or 1, others()
    busy = taken > NOISY * cores
    if name in CORES and cores - taken < CORES[name] * (1 - NOISY):
        case = f"not run: other processes have {taken:.1f} of {cores} cores"
        yield BenchRow(bench=name, case=case, value=cores - taken, unit="cores free", noisy=True)
        return
    for row in importlib.import_module(f"rayd.studies.bench.{name}").rows(size):
        yield replace(row, noisy=row.noisy or busy)


def resident() -> int:
    """Peak resident bytes of this process so far."""
    return peak_memory("cpu")


def isolated(name: str, function: str, /, timeout: float = 600.0, **kwargs: Any) -> dict[str, Any]:
    """One case in a fresh process, so that its peak memory and its compilation are its own."""
    spec = json.dumps({"module": name, "function": function, "kwargs": kwargs})
    words = [sys.executable, "-m", "rayd.studies.bench", spec]
    child = subprocess.run(words, capture_output=True, text=True, timeout=timeout)
    if child.returncode != 0:
        raise Failed(f"bench {name}.{function}({kwargs}) ended with {child.returncode}:\n{child.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(child.stdout.strip().splitlines()[-1])
    return result


def timings(name: str, function: str, /, **kwargs: Any) -> dict[str, Timing]:
    """As `isolated`, of a function that returns the timings of its ways."""
    result = isolated(name, function, timeout=900, **kwargs)
    return {way: Timing(**plain) for way, plain in result.items() if way not in ("peak", "gpu_peak")}


def peak_of(result: Mapping[str, Any]) -> float:
    """On a GPU the most that was allocated there."""
    return float(result.get("gpu_peak", result["peak"]))
