"""One watchdog for all work on Ray: who is at work, since when it has not moved, and what it warned of.

A worker process registers with the driver's Monitor, an actor, and passes on every `rayd.machine.beat` of the work it
does. The driver's Watch looks at the Monitor once a second. It repeats the workers' warnings in the job's log, keeps
`events.jsonl` in `out`, and kills the processes of work that has stopped beating. A killed process is a lost one, and
every stage handles lost processes already: a new actor, a task tried again, a new worker group.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import ray
from ray.exceptions import RayError
from ray.util.metrics import Counter, Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayd import machine
from rayd.config.scale import ScaleConfig
from rayd.errors import Failed
from rayd.fleet.cluster import draining, same_versions, versions
from rayd.fleet.monitor import CONTROLLER, Member, Monitor, birth
from rayd.fleet.policy import Beat, hung
from rayd.store import Store

log = logging.getLogger(__name__)

EVENTS = "events.jsonl"
WORK = "work.json"
"""Who is at work, how old their beats are, and process seconds by stage: for those who look at the folder alone."""
DRAINS_EVERY = 5.0
"""Seconds between two questions which nodes are told to stop."""
TICK = 1.0
"""Seconds between two looks of the watchdog."""
NOTES_EVERY = 10.0
"""Seconds between two lines of progress in the job's log."""
WRITE_EVERY = 15.0
"""Seconds between two writes of the events: an object store cannot append, so each write is of the whole file."""
READY = 180.0
"""Seconds that the Monitor may take to start, on a machine that is busy."""
ANSWER = 30.0
"""Seconds that the Monitor may take to answer."""


@dataclass(frozen=True)
class Pulse:
    """What a worker needs to register: plain values, which travel with its work."""

    monitor: str
    startup: float
    beat: float
    versions: Mapping[str, str]
    """The driver's."""


# ---- in a worker -----------------------------------------------------------------------------------------------------


class _Warnings(logging.Handler):
    """Passes warnings on to the driver, whose log is the job's."""

    def __init__(self, monitor: Any, group: str, member: Member) -> None:
        super().__init__(logging.WARNING)
        self.monitor, self.group, self.member = monitor, group, member

    def emit(self, record: logging.LogRecord) -> None:
        self.monitor.say.remote(self.group, self.member, record.levelname.lower(), record.getMessage())


class _Rest(threading.Thread):
    """Beats for a process that waits for its next unit, so that one which is stopped there is missed as any other is."""

    now: ClassVar[_Rest | None] = None
    """This process's, while it waits."""

    def __init__(self, say: Callable[[], Any], every: float) -> None:
        super().__init__(name="rest", daemon=True)
        self.say, self.every, self.over = say, every, threading.Event()
        # The first word is awaited: a process that stops right after it is known as resting.
        with contextlib.suppress(RayError):
            ray.get(say(), timeout=ANSWER)

    def run(self) -> None:
        while not self.over.wait(self.every):
            self.say()

    @classmethod
    def begin(cls, say: Callable[[], Any], every: float) -> None:
        cls.now = cls(say, every)
        cls.now.start()

    @classmethod
    def end(cls) -> None:
        if cls.now is not None:
            cls.now.over.set()
            cls.now.join()
            cls.now = None


@contextlib.contextmanager
def beating(pulse: Pulse, group: str, place: int = 0, stays: bool = False) -> Iterator[None]:
    """While this process works for `group`, its beats and its warnings reach the driver. `place`: its number in a group that
    works together; `stays`: whether it is an actor that will be given other work after this."""
    monitor, member, sent = ray.get_actor(pulse.monitor), Member.here(), 0.0
    same_versions(versions(), pulse.versions, f"{group} on {member.host}")
    least = min(1.0, pulse.beat / 10)
    _Rest.end()

    def send(note: str) -> None:
        nonlocal sent
        if time.monotonic() - sent >= least:
            sent = time.monotonic()
            monitor.beat.remote(group, member, note, pulse.beat)

    monitor.begin.remote(group, member, max(pulse.startup, pulse.beat), versions(), place)
    handler, logger = _Warnings(monitor, group, member), logging.getLogger("rayd")
    logger.addHandler(handler)
    machine.on_beat(send)
    try:
        yield
    finally:
        machine.on_beat(None)
        logger.removeHandler(handler)
        if stays:
            _Rest.begin(lambda: monitor.rest.remote(group, member, pulse.beat), pulse.beat / 4)
        else:
            monitor.end.remote(group, member)


# ---- in the driver ---------------------------------------------------------------------------------------------------


def _kill(member: Member) -> bool:
    """On the member's node; whether it ran. A process that ended meanwhile is left alone, whoever has its number now."""
    if birth(member.pid) != member.born:
        return False
    try:
        os.kill(member.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


@dataclass
class Watch:
    """Watches the work of one stage while the driver waits for it."""

    scale: ScaleConfig
    out: str
    stage: str
    shows: bool = False
    """Whether the job's log repeats what the groups did last, now and then."""
    quiet: float = 0.0
    """Seconds since the last sign of any worker."""
    notes: dict[str, str] = field(default_factory=dict)
    """What each group did last."""
    ended: dict[str, str] = field(default_factory=dict)
    """Why the process of a group was killed."""
    places: dict[str, str] = field(default_factory=dict)
    """Node of each group's last process."""
    leaving: set[str] = field(default_factory=set)
    """Nodes that were told to stop."""

    def __enter__(self) -> Watch:
        name = f"rayd-monitor-{uuid.uuid4().hex[:12]}"
        self.pulse = Pulse(name, self.scale.startup, self.scale.beat, versions())
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options: dict[str, Any] = {"name": name, "num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
        actor: Any = ray.remote(Monitor)
        self._monitor = actor.options(**options).remote()
        ray.get(self._monitor.look.remote(), timeout=READY)
        self._store = Store(self.out)
        self._lines = self._store.read(EVENTS).decode().splitlines() if self._store.exists(EVENTS) else []
        self._spent: dict[str, float] = self._store.facts(WORK).get("seconds", {})
        self._beats: list[dict[str, Any]] = []
        self._own = own = Member.here()
        self._ending: dict[tuple[str, Member], tuple[str, Any]] = {}
        self.record("stage", "", host=own.host, pid=own.pid, node=own.node, group="driver")
        self._written = self._noted = self._looked = time.monotonic()
        self._asked = -DRAINS_EVERY
        self._oldest = Gauge("rayd_beat_age_seconds", "Age of the oldest beat of a stage", tag_keys=("stage",))
        self._hung = Counter("rayd_hung", "Processes that the watchdog has ended", tag_keys=("stage",))
        self._warnings = Counter("rayd_warnings", "Warnings of workers", tag_keys=("stage",))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(RayError):
            self._look()
        self._beats = []
        self._write()
        ray.kill(self._monitor)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles whatever it calls in the driver, and never reads it back."""
        return {}

    def record(self, kind: str, text: str, **more: Any) -> None:
        """An event of the driver's own."""
        self._lines.append(json.dumps({"time": time.time(), "event": kind, "stage": self.stage, "text": text, **more}))

    def forget(self, group: str) -> None:
        """Nobody is at work for this group any more: the driver has ended its process, or knows that it died."""
        self._monitor.forget.remote(group)

    def why(self, group: str, otherwise: str) -> str:
        """Why work was lost: what the watchdog did, or what Ray said."""
        return self.ended.pop(group, otherwise)

    def notices(self) -> set[str]:
        """The nodes that were told to stop, asked of Ray now."""
        for node in draining() - self.leaving:
            groups = ", ".join(group for group, place in self.places.items() if place == node)
            self.record("notice", f"a node is about to be taken away; it had {groups or 'no work'}", node=node)
            self.leaving.add(node)
        self._asked = time.monotonic()
        return self.leaving

    def taken(self, group: str) -> bool:
        """Whether work was lost with a node that was taken away after a notice."""
        return self.places.get(group) in self.notices()

    def _run(self) -> None:
        while not self._over.wait(TICK):
            try:
                self._look()
            except RayError as error:
                log.warning("the watchdog's monitor does not answer (%s); it is asked again", type(error).__name__)
            if time.monotonic() - self._written > WRITE_EVERY:
                self._write()

    def _look(self) -> None:
        looked, events, self.quiet = ray.get(self._monitor.look.remote(), timeout=ANSWER)
        for event in events:
            self._lines.append(json.dumps({**event, "stage": self.stage}))
            if event["event"] != "start":
                self._warnings.inc(tags={"stage": self.stage})
                level = logging.getLevelNamesMapping()[event["event"].upper()]
                log.log(level, "%s on %s: %s", event["group"], event["host"], event["text"])
        at_work = [(beat, member) for beat, member in looked if not beat.idle]
        self._oldest.set(max((beat.age for beat, _ in at_work), default=0.0), tags={"stage": self.stage})
        self.notes |= {beat.group: beat.note for beat, _ in at_work if beat.note}
        self.places = self.places | {beat.group: member.node for beat, member in looked}  # others read it
        if time.monotonic() - self._asked > DRAINS_EVERY:
            self.notices()
        if self.shows and time.monotonic() - self._noted > NOTES_EVERY:
            self._noted = time.monotonic()
            for group in {beat.group for beat, _ in at_work if beat.note}:
                log.info("%s  %s", group, self.notes.get(group, ""))
        passed, self._looked = time.monotonic() - self._looked, time.monotonic()
        working = sum(not beat.group.endswith(CONTROLLER) for beat, _ in at_work)
        self._spent[self.stage] = self._spent.get(self.stage, 0.0) + passed * working
        self._beats = [{**asdict(beat), "host": member.host, "pid": member.pid} for beat, member in at_work]
        stale = set(hung([beat for beat, _ in looked]))
        for beat, member in looked:
            if beat in stale:
                self._end(beat, member)
        self._settle()

    def _end(self, beat: Beat, member: Member) -> None:
        """End a process that is hung, and forget one that died: whoever waits for its work hears of that from Ray."""
        if (beat.group, member) in self._ending:
            return
        reason = f"no beat for {beat.age:.0f} s, more than {beat.allowed:g} s; the last was '{beat.note}'"
        self.ended[beat.group] = reason
        if member.node == self._own.node and _kill(member):  # a task needs a process, which takes long on a busy node
            self._note_end(beat.group, member, reason, True)
            return
        there = NodeAffinitySchedulingStrategy(member.node, soft=False)
        task: Any = ray.remote(_kill).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        self._ending[beat.group, member] = reason, task.remote(member)

    def _settle(self) -> None:
        """What became of the processes that are being ended on other nodes."""
        for (group, member), (reason, ref) in list(self._ending.items()):
            if not ray.wait([ref], timeout=0)[0]:
                continue
            del self._ending[group, member]
            try:
                ran = ray.get(ref)
            except RayError:  # with its node, the process is gone too
                ran = False
            self._note_end(group, member, reason, ran)

    def _note_end(self, group: str, member: Member, reason: str, ran: bool) -> None:
        self._monitor.end.remote(group, member)
        if not ran:
            self.ended.pop(group, None)
            return
        log.warning("%s on %s, process %d is hung: %s; it is ended", group, member.host, member.pid, reason)
        self._hung.inc(tags={"stage": self.stage})
        self.record("hung", reason, group=group, host=member.host, pid=member.pid)

    def _write(self) -> None:
        self._written = time.monotonic()
        try:
            self._store.write(EVENTS, ("\n".join(self._lines) + "\n").encode() if self._lines else b"")
            work = {"time": time.time(), "stage": self.stage, "seconds": self._spent, "beats": self._beats}
            self._store.write_json(WORK, work)
        except Failed as error:
            log.warning("%s; the events are written later", error)
