"""Progress for people: one live line on a terminal, a plain line every ten seconds in a job's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from rayd.numbers import duration

S = TypeVar("S", bound="Numbered")
SECONDS_TERMINAL, SECONDS_LOG = 0.2, 10.0


class Numbered(Protocol):
    number: int
    value: float
    skipped: str


class Line:
    """A line that a terminal rewrites in place, and that a log repeats every ten seconds."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.shown = -1e9
        self.width = 0

    def show(self, text: str, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self.shown < (SECONDS_TERMINAL if self.live else SECONDS_LOG):
            return
        self.shown = now
        if self.live:
            sys.stderr.write("\r" + text.ljust(self.width) + ("\n" if last else ""))
            self.width = len(text)
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def follow(steps: Iterable[S], total: int, what: str) -> Iterator[S]:
    """The steps, unchanged, while a line shows the step, the loss and the time left."""
    line, began, first = Line(), time.monotonic(), 0
    skipped, last = 0, None
    for step in steps:
        first = first or step.number
        skipped += bool(step.skipped)
        rate = (time.monotonic() - began) / (step.number - first + 1)
        left = duration(rate * (total - step.number))
        note = f", {skipped} skipped" if skipped else ""
        line.show(f"{what}  step {step.number}/{total}  loss {step.value:.4f}  {rate:.2f} s/step  {left} left{note}")
        last = step
        yield step
    if last is not None:
        spent = duration(time.monotonic() - began)
        line.show(f"{what}  step {last.number}/{total}  loss {last.value:.4f}  done in {spent}", last=True)
