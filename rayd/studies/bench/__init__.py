"""Timing, in one place: every row is a ratio against the plain way, measured in the same run.

A bench is a module with `rows(size) -> Iterator[Row]`. What needs an honest peak memory runs in a child process of its own:
`isolated("unroll", "full_graph", width=128)` calls that module's function `full_graph(width=128)`, which returns a dict of
numbers, and adds `peak` (bytes of resident memory above what the process held after its imports).
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rayd.errors import Failed
from rayd.machine import peak_memory

BENCHES = ("experts", "unroll", "codecs", "objectives", "evaluate", "buffer", "scaling")


@dataclass(frozen=True)
class Row:
    bench: str
    case: str
    """The settings: `width=128 bf16`."""
    value: float
    unit: str
    ratio: float | None = None
    """Against the plain way in the same run; above 1 is better."""
    memory_ratio: float | None = None
    """Peak memory against the plain way; below 1 is better."""

    def json(self) -> str:
        return json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()})


def rows(name: str, size: str = "default") -> Iterator[Row]:
    yield from importlib.import_module(f"rayd.studies.bench.{name}").rows(size)


def resident() -> int:
    """Peak resident bytes of this process so far."""
    return peak_memory("cpu")


def isolated(name: str, function: str, timeout: float = 600.0, **kwargs: Any) -> dict[str, float]:
    """One case in a fresh process, so that its peak memory and its compilation are its own."""
    spec = json.dumps({"module": name, "function": function, "kwargs": kwargs})
    words = [sys.executable, "-m", "rayd.studies.bench", spec]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise Failed(f"bench {name}.{function}({kwargs}) ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
