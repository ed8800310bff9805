"""The actor that hears the beats of all who are at work, and says who they are and how old their beats."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from rayd.fleet.policy import Beat


@dataclass(frozen=True)
class Member:
    """A process at work."""

    host: str
    node: str
    pid: int
    born: str
    """The system's start time of the process: a number of its own where process ids are used again."""

    @classmethod
    def here(cls) -> Member:
        return cls(socket.gethostname(), ray.get_runtime_context().get_node_id(), os.getpid(), birth(os.getpid()))


def birth(pid: int) -> str:
    """When a process started, in the system's own unit; empty where it does not run."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if state == "Z" else rest[18]
    except (FileNotFoundError, ProcessLookupError):
        return ""


UNKNOWN = -1
CONTROLLER = " controller"
"""Ends the name of a group that directs others and takes no core of its own."""


@dataclass
class _Entry:
    note: str
    at: float
    allowed: float
    place: int
    idle: bool = False


class Monitor:
    """The actor that hears every beat. Ages are by its own clock, so the machines' clocks do not matter."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, Member], _Entry] = {}
        self.attempts: dict[str, int] = {}
        self.events: list[dict[str, Any]] = []
        self.heard = time.monotonic()

    def begin(self, group: str, member: Member, allowed: float, about: Mapping[str, Any], place: int = 0) -> None:
        """A process takes a place of the group, and with it that of a process which died there."""
        self.attempts[group] = self.attempts.get(group, 0) + 1
        self.forget(group, place)
        self.heard = time.monotonic()
        self.entries[group, member] = _Entry("starting", self.heard, allowed, place)
        self.say(group, member, "start", "", node=member.node, attempt=self.attempts[group], **about)

    def beat(self, group: str, member: Member, note: str, allowed: float) -> None:
        self.heard = time.monotonic()
        entry = self.entries.get((group, member))  # none where this actor was started again
        self.entries[group, member] = _Entry(note, self.heard, allowed, entry.place if entry else UNKNOWN)

    def forget(self, group: str, place: int | None = None) -> None:
        """Whoever had this place of the group, or any of its places, has ended without a word."""
        gone = [key for key, entry in self.entries.items() if key[0] == group and place in (None, entry.place)]
        for key in gone:
            del self.entries[key]

    def rest(self, group: str, member: Member, allowed: float) -> None:
        """A process has ended a unit, and waits to be given another or to be ended."""
        self.beat(group, member, "waits for a unit", allowed)
        self.entries[group, member].idle = True

    def end(self, group: str, member: Member) -> None:
        self.entries.pop((group, member), None)
        self.heard = time.monotonic()

    def say(self, group: str, member: Member, kind: str, text: str, **more: Any) -> None:
        who = {"group": group, "host": member.host, "pid": member.pid}
        self.events.append({"time": time.time(), "event": kind, **who, **({"text": text} if text else {}), **more})

    def look(self) -> tuple[list[tuple[Beat, Member]], list[dict[str, Any]], float]:
        """Beats of all that is at work, the events since the last look, and seconds since the last sign of anybody."""
        now = time.monotonic()
        beats = [
            (Beat(group, entry.note, now - entry.at, entry.allowed, entry.idle), member)
            for (group, member), entry in self.entries.items()
        ]
        events, self.events = self.events, []
        return beats, events, now - self.heard
