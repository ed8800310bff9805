"""What each stage of a run cost, beside what its plan promised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayd.artifact.fields import ledger as read_ledger
from rayd.config import Run
from rayd.run.progress import Progress
from rayd.schema import fields
from rayd.store import Store

PLAN: Mapping[str, Any] = {
    "experts": Mapping[str, Any], "ledger": Mapping[str, Any], "seconds": Mapping[str, float], "peak": Mapping[str, float],
}  # fmt: skip
TIMES = ("distill_s", "distill_peak", "evaluate_s", "evaluate_peak")


def account(store: Store, progress: Progress) -> None:
    """Seconds and memory of the experts, for the run's page; a command that continued an earlier one adds to it."""
    timing = store.facts("timing.json")
    seconds, peak = timing.get("experts_s", 0.0) + progress.seconds, max(timing.get("experts_peak", 0), progress.memory)
    store.write_json("timing.json", {**timing, "experts_s": seconds, "experts_peak": peak})


def against(planned: Mapping[str, Any], store: Store, buffer: Store) -> list[tuple[str, float, float]]:
    """(what, planned, actual) of everything that the run has finished so far."""
    rows: list[tuple[str, float, float]] = []
    fields(planned, PLAN, "plan.json")
    fields(planned["experts"], dict.fromkeys(("experts", "shards", "bytes"), int), "plan.json: experts")
    if planned["experts"]["experts"]:
        shards = {name: size for name, size in buffer.sizes("experts-").items() if name.endswith(".tar")}
        if len(shards) == planned["experts"]["shards"]:
            rows.append(("buffer bytes", planned["experts"]["bytes"], sum(shards.values())))
    if store.exists("artifact/ledger.json"):
        ledger = read_ledger(store.read("artifact/ledger.json"))
        fields(planned["ledger"], dict.fromkeys(("floats", "bytes"), int), "plan.json: ledger")
        rows += [(f"artifact {name}", planned["ledger"][name], ledger[name]) for name in ("floats", "bytes")]
        timing = store.facts("artifact/timing.json")
        fields(timing, {name: float for name in TIMES if name in timing}, "artifact/timing.json")
        if "distill" in planned["seconds"] and "distill_s" in timing:
            rows.append(("distill seconds", planned["seconds"]["distill"], timing["distill_s"]))
        promised = planned["peak"]
        if "distill" in promised and "distill_peak" in timing:
            rows.append(("distill peak bytes", promised["distill"], timing["distill_peak"]))
        if "evaluate" in promised and "evaluate_peak" in timing:
            most = max(promised["evaluate"], promised.get("controls", 0))
            rows.append(("evaluate peak bytes", most, timing["evaluate_peak"]))
    return rows


def keep(run: Run, artifact: Store) -> None:
    """Plan against actual stays with the artifact: in timing.json, for the card itself is the same in every equal run."""
    place = Store(run.out)
    if place.exists("plan.json") and artifact.exists("timing.json"):
        rows = against(place.read_json("plan.json"), place, Store(run.experts_at))
        plan = [{"what": what, "planned": planned, "actual": actual} for what, planned, actual in rows]
        artifact.write_json("timing.json", {**artifact.read_json("timing.json"), "plan": plan})
