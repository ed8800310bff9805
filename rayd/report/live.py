"""A run while it goes on, from what it leaves in its folder: lines for a terminal, and a page that reloads itself.

    work.json      who is at work, the ages of their beats, process seconds by stage      every stage on Ray
    events.jsonl   starts, losses, warnings                                               every stage on Ray
    metrics.jsonl  a line a step, written with every checkpoint                           jobs.distill
    preview.png    the images of the last checkpoint                                      jobs.distill

Nothing is locked and nothing written but the page, so any number of people can watch one run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rayd.artifact.png import data_uri
from rayd.numbers import duration, percent, size_text
from rayd.report.shell import Html, page, table, tag
from rayd.store import Store

STALE = 90.0
"""Seconds after which a driver that writes every fifteen is taken to be gone."""
EVENTS, STARTS = 12, 4
BEGIN = ("start", "stage")
"""Events of work that begins: of a process, of a driver."""
POINTS = 300
WIDTH, HEIGHT = 640, 170


@dataclass(frozen=True)
class Stage:
    name: str
    state: str
    """done, at work, begun or not yet."""
    detail: str


@dataclass(frozen=True)
class Beat:
    """A process at work and the age of its last beat."""

    stage: str
    group: str
    where: str
    note: str
    age: float
    allowed: float


@dataclass(frozen=True)
class Live:
    out: str
    stages: Sequence[Stage]
    steps: Sequence[Mapping[str, float]]
    beats: Sequence[Beat]
    written: float | None
    """Seconds since the driver wrote work.json."""
    spent: Mapping[str, float]
    """Process seconds by stage."""
    events: Sequence[Mapping[str, Any]]
    """Warnings, losses, ends of hung work: the last of them, newest first."""
    starts: Sequence[Mapping[str, Any]]
    """The last beginnings of work."""
    counts: Mapping[str, int]
    """Events of each kind, of all time."""
    preview: bytes

    @property
    def hours(self) -> float:
        return sum(self.spent.values()) / 3600


def look(store: Store, buffer: Store, now: float) -> Live:
    """What the run has left so far. `now`: the time by which beats are dated."""
    work = store.facts("work.json")
    since = now - work["time"] if work else None
    beats = [
        Beat(
            work["stage"],
            one["group"],
            f"{one['host']}:{one['pid']}",
            one["note"],
            one["age"] + (since or 0.0),
            one["allowed"],
        )
        for one in work.get("beats", ())
    ]
    steps, events = _lines(store, "metrics.jsonl"), _lines(store, "events.jsonl")
    kinds = [str(event["event"]) for event in events]
    busy = {beat.stage for beat in beats} if since is not None and since < STALE else set()
    return Live(
        out=store.uri.partition("?")[0],
        stages=list(_stages(store, buffer, steps, busy)),
        steps=steps,
        beats=sorted(beats, key=lambda beat: -beat.age),
        written=since,
        spent=_spent(store, steps) | work.get("seconds", {}),
        events=[event for event in events[::-1] if event["event"] not in BEGIN][:EVENTS],
        starts=[event for event in events[::-1] if event["event"] in BEGIN][:STARTS],
        counts={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        preview=store.read("preview.png") if store.exists("preview.png") else b"",
    )


def _lines(store: Store, name: str) -> list[dict[str, Any]]:
    text = store.read(name).decode() if store.exists(name) else ""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _spent(store: Store, steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of stages that ran in one process without Ray."""
    timing = store.facts("timing.json") | store.facts("artifact/timing.json")
    spent = {name: timing.get(f"{name}_s", 0.0) for name in ("experts", "evaluate")}
    spent["distill"] = sum(line["seconds"] for line in steps)
    return {name: seconds for name, seconds in spent.items() if seconds}


def _stages(store: Store, buffer: Store, steps: Sequence[Mapping[str, float]], busy: set[str]) -> Iterator[Stage]:
    """Every stage of a pipeline, and the search where there is one."""

    def stage(name: str, done: bool, detail: str) -> Stage:
        at_work = any(one.startswith(name) for one in busy)
        return Stage(name, "done" if done else "at work" if at_work else "begun" if detail else "not yet", detail)

    plan = store.facts("plan.json")
    config = store.facts("checkpoints/identity.json").get("config", {}) or store.facts("artifact/card.json").get(
        "config", {}
    )
    data = [name for name in store.list("data/") if name.endswith(".tar")]
    if data:
        yield stage("prepare", store.exists("data/manifest.json"), f"{len(data)} shards")
    yield _experts(buffer, plan, stage)
    last = steps[-1] if steps else {}
    total = f"/{config['method']['steps']}" if "method" in config else ""
    detail = f"step {last['step']:.0f}{total}, loss {last['loss']:.4g}, {last['seconds']:.2f} s a step" if last else ""
    detail += f", validation {percent(last['val'])}" if "val" in last else ""
    yield stage("distill", store.exists("artifact/card.json"), detail)
    trials = [name for name in store.list("search/results/") if name.endswith(".json")]
    if trials:
        yield stage("search", store.exists("search/outcome.json"), f"{len(trials)} trials ended")
    kept = [name for name in store.list("artifact/score-") if name.endswith(".json")]
    rows = store.facts("artifact/controls.json").get("rows", [])
    scores = [f"{row['set']} {percent(row['mean'], row['std'], row['n'])}" for row in rows if row["set"] == "distilled"]
    yield stage("evaluate", bool(rows), ", ".join(scores) or (f"{len(kept)} networks scored" if kept else ""))
    yield stage(
        "report", store.exists("report/index.html"), "report/index.html" if store.exists("report/index.html") else ""
    )


def _experts(buffer: Store, plan: Mapping[str, Any], stage: Any) -> Stage:
    sizes = buffer.sizes("experts-")
    shards = [name for name in sizes if name.endswith(".tar") and f"{name[:-4]}.json" in sizes]
    failed = sum(name.endswith(".failed.json") for name in sizes)
    planned = plan.get("experts", {}).get("shards")
    detail = f"{len(shards)}{f'/{planned}' if planned else ''} shards, {size_text(sum(sizes[one] for one in shards))}"
    if shards:
        last = buffer.read_json(f"{shards[-1][:-4]}.json")["experts"]
        found = [row["val_accuracy"][-1] for row in last if row.get("val_accuracy")]
        detail += f", validation {percent(fmean(found))}" if found else ""
    detail += f", {failed} diverged" if failed else ""
    begun = bool(shards or failed)
    return stage("experts", buffer.exists("manifest.parquet"), detail if begun else "")  # type: ignore[no-any-return]


# ---- for a terminal --------------------------------------------------------------------------------------------------


def lines(live: Live, rate: float = 0.0) -> list[str]:
    """`rate`: the price of one process for an hour."""
    text = [live.out, ""]
    text += [f"{stage.name:<10}{stage.state:<9}{stage.detail}" for stage in live.stages]
    text += ["", f"cost      {cost(live, rate)}"]
    text += [f"events    {', '.join(f'{count} {kind}' for kind, count in live.counts.items()) or 'none'}"]
    if silence(live):
        text += ["", silence(live)]
    text += ["", *(f"{beat.age:5.0f} s  {beat.group:<20}{beat.where:<22}{beat.note}" for beat in live.beats)]
    text += [
        "",
        *(f"{_when(event)}  {event['event']:<9}{_who(event)}  {event.get('text', '')}" for event in live.events),
    ]
    return ["".join(sign if sign.isprintable() else "?" for sign in line).rstrip() for line in text]


def cost(live: Live, rate: float) -> str:
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in live.spent.items())
    price = f" = {live.hours * rate:.2f} at {rate:g} an hour" if rate else ""
    return f"{live.hours:.2f} process hours{price}{f' ({parts})' if parts else ''}"


def silence(live: Live) -> str:
    """What to say of a driver that has stopped writing; empty while it writes or has ended in order."""
    if live.written is None or live.written < STALE or not live.beats:
        return ""
    why = "it was stopped, or its storage fails; the same command goes on"
    return f"the driver has written nothing for {duration(live.written)}: {why}"


def _both(live: Live) -> list[Mapping[str, Any]]:
    return [*live.events, *live.starts]


def _when(event: Mapping[str, Any]) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(event["time"], UTC).strftime("%d %b %H:%M:%S")


def _who(event: Mapping[str, Any]) -> str:
    place = f" on {event['host']}" if "host" in event else ""
    return f"{event.get('stage', '')}: {event['group']}{place}" if "group" in event else str(event.get("stage", ""))


# ---- as a page -------------------------------------------------------------------------------------------------------


def html(live: Live, rate: float, every: float) -> str:
    """The page; it loads itself again every `every` seconds."""
    stages = table(("stage", "", ""), [(stage.name, stage.state, stage.detail) for stage in live.stages])
    beats = [
        (f"{beat.age:.0f} s", f"of {beat.allowed:.0f} s", beat.group, beat.where, beat.note) for beat in live.beats
    ]
    events = [(_when(one), one["event"], _who(one), one.get("text", "")) for one in _both(live)]
    sections = [_section("Stages", stages, tag("p", cost(live, rate), class_="note"))]
    if silence(live):
        sections.insert(0, _section("No driver", tag("p", silence(live))))
    if live.steps:
        sections.append(_section("Loss", curve([line["loss"] for line in live.steps], int(live.steps[-1]["step"]))))
    if live.preview:
        sections.append(
            _section(
                "Images of the last checkpoint",
                tag(
                    "img",
                    src=data_uri(live.preview),
                    alt="images so far",
                    style="height:360px;max-width:100%;object-fit:contain;object-position:left",
                ),
            )
        )
    empty = tag("p", "Nobody: no stage runs on Ray now.", class_="empty")
    sections.append(
        _section("At work", table(("last beat", "allowed", "who", "where", "did"), beats) if beats else empty)
    )
    counts = ", ".join(f"{count} {kind}" for kind, count in live.counts.items())
    sections.append(
        _section("Events", tag("p", counts or "none yet", class_="note"), table(("UTC", "event", "who", ""), events))
    )
    header = tag("header", tag("p", "a run while it goes on", class_="kicker"), tag("h1", live.out))
    footer = tag("footer", f"jobs.watch writes this page; it loads itself again every {every:g} s.")
    return page(f"watch {live.out}", header, tag("main", *sections), footer, refresh=every)


def _section(title: str, *parts: Html) -> Html:
    return tag("section", tag("h2", title), *parts)


def curve(values: Sequence[float], last: int) -> Html:
    """A line of at most POINTS means, with its first and last value."""
    size = max(1, -(-len(values) // POINTS))
    means = [fmean(values[at : at + size]) for at in range(0, len(values), size)]
    low, high = min(means), max(means)
    scale = (HEIGHT - 20) / ((high - low) or 1.0)
    across = WIDTH / max(1, len(means) - 1)
    path = " ".join(f"{at * across:.1f},{10 + (high - mean) * scale:.1f}" for at, mean in enumerate(means))
    line = tag("polyline", points=path, fill="none", stroke="#2b5fd9", **{"stroke-width": "2"})
    means_of = f", each point the mean of {size} steps" if size > 1 else ""
    about = f"step {last}: {values[-1]:.4g}; from {low:.4g} to {high:.4g}{means_of}"
    return tag(
        "figure", tag("svg", line, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img"), tag("figcaption", about), class_="wide"
    )
