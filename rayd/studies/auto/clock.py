"""The seconds that a command has used, over all its starts: kept in its folder, so that a killed one goes on counting."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rayd.errors import Failed
from rayd.store import Store

NAME = "clock.json"


class Clock:
    """`with Clock(...) as clock:` counts; `clock.used`, `clock.left`. What a kill loses is one `beat` at most."""

    def __init__(self, store: Store, seconds: float, began: float | None = None, beat: float = 2.0) -> None:
        """`seconds`: that may be used; `began`: of time.monotonic(), where the process began before this was made."""
        self.store, self.seconds, self.beat = store, seconds, beat
        self.began = time.monotonic() if began is None else began
        kept = store.facts(NAME)
        self.before: float = kept.get("used", 0.0)
        self.starts: int = kept.get("starts", 0) + 1
        self.marks: dict[str, float] = kept.get("marks", {})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count, name="clock", daemon=True)

    @property
    def used(self) -> float:
        return self.before + time.monotonic() - self.began

    @property
    def left(self) -> float:
        return self.seconds - self.used

    def mark(self, stage: str) -> None:
        """A stage has ended; the first time counts."""
        self.marks.setdefault(stage, self.used)
        self._write()

    def stages(self) -> list[tuple[str, float]]:
        """The seconds of each stage that has ended."""
        ends = sorted(self.marks.items(), key=lambda mark: mark[1])
        return [
            (name, end - before) for (name, end), before in zip(ends, [0.0, *(end for _, end in ends)], strict=False)
        ]

    def __enter__(self) -> Clock:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._write()

    def _count(self) -> None:
        while not self._stop.wait(self.beat):
            try:
                self._write()
            except Failed:
                continue  # the work itself will meet what is wrong with the store

    def _write(self) -> None:
        plain = {"seconds": self.seconds, "used": self.used, "starts": self.starts, "marks": dict(self.marks)}
        self.store.write_json(NAME, plain)
