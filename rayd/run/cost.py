"""What each stage of a run cost, beside what its plan promised."""

from __future__ import annotations

from rayd.run.progress import Progress
from rayd.store import Store


def account(store: Store, progress: Progress) -> None:
    """Seconds and memory of the experts, for the run's page; a command that continued an earlier one adds to it."""
    held = store.facts("timing.json")
    seconds, peak = held.get("experts_s", 0.0) + progress.seconds, max(held.get("experts_peak", 0), progress.memory)
    store.write_json("timing.json", {**held, "experts_s": seconds, "experts_peak": peak})
