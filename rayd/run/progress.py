"""The progress of jobs.experts, in numbers and as a line of text; the caller shows it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayd.numbers import size_text


@dataclass(frozen=True)
class Built:
    """The result of one unit: numbers only, which an actor can send."""

    unit: str
    bytes: int
    images: int
    seconds: float
    failure: Mapping[str, Any] | None = None
    accuracy: float | None = None
    """Mean over its experts, at the last snapshot."""
    memory: int = 0
    """Peak bytes of the process that built it."""


@dataclass
class Progress:
    """Counts of units and experts; one object, which `build` updates and yields again and again."""

    total: int
    """Units of the plan."""
    skipped: int
    """Units that were committed before this command."""
    experts: int = 0
    """Experts that this command has trained."""
    planned: int = 0
    """Experts that this command has to train."""
    failed: int = 0
    """Units that diverged, earlier ones included."""
    retried: int = 0
    """Units handed to another worker because theirs was lost."""
    bytes: int = 0
    """Of all committed shards."""
    images: int = 0
    actors: int = 1
    done: int = 0
    """Units that this command has built."""
    last: Built | None = None
    """The unit that ended since the last Progress."""
    accuracy: float | None = None
    """Mean accuracy of the last unit's experts."""
    now: str = ""
    """What one of the workers did last."""
    memory: int = 0
    """Peak bytes of the worker that held the most."""
    pids: tuple[int, ...] = ()
    """Worker processes on this machine."""
    began: float = field(default_factory=time.monotonic)

    def add(self, built: Built, experts: int) -> Progress:
        self.last = built
        self.memory = max(self.memory, built.memory)
        if built.failure is not None:
            self.failed += 1
            return self
        self.done += 1
        self.experts += experts
        self.bytes += built.bytes
        self.images += built.images
        self.accuracy = self.accuracy if built.accuracy is None else built.accuracy
        return self

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def per_hour(self) -> float:
        return self.experts / max(self.seconds, 1e-9) * 3600

    @property
    def rate(self) -> float:
        """Images per second since this command began, compilation and all."""
        return self.images / max(self.seconds, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds to go, by the pace so far."""
        return self.seconds * (self.planned - self.experts) / self.experts if self.experts else None

    def rows(self) -> list[tuple[str, str]]:
        """The live table."""
        before = f" ({self.skipped} from before)" if self.skipped else ""
        table = [
            ("shards", f"{self.skipped + self.done}/{self.total}{before}"),
            ("experts", f"{self.experts}/{self.planned}"),
            ("per hour", f"{self.per_hour:.0f}"),
            ("left", "?" if self.left is None else f"{self.left:.0f} s"),
            ("failed", str(self.failed)),
            ("retried", str(self.retried)),
            ("workers", str(self.actors)),
            ("buffer", size_text(self.bytes)),
            ("peak", size_text(self.memory)),
            ("images/s", f"{self.rate:.0f}"),
        ]
        if self.accuracy is not None:
            table.append(("accuracy", f"{self.accuracy:.3f}"))
        return [*table, ("now", self.now)] if self.now else table

    def line(self) -> str:
        """The same in one line, for a job's log."""
        return "  ".join(f"{name} {value}" for name, value in self.rows())
