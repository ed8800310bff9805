"""Checkpoints and metrics of a distillation."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayd.distill.budget import from_bytes, to_bytes
from rayd.distill.loop import State
from rayd.errors import Failed, Refused, Transient
from rayd.run.identity import refuse_differing
from rayd.store import Store

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints kept: the newest, and one before it should the newest turn out damaged."""
IDENTITY = "identity.json"


@dataclass
class MetricsFile:
    """`metrics.jsonl`: a line for every step so far, cut back to the checkpoint on a resume."""

    store: Store
    lines: list[dict[str, float]] = field(default_factory=list)

    def load(self, step: int) -> None:
        if not self.store.exists("metrics.jsonl"):
            return
        try:
            lines = [json.loads(line) for line in self.store.read("metrics.jsonl").decode().splitlines()]
            self.lines = [line for line in lines if line["step"] <= step]
        except (ValueError, LookupError, TypeError) as error:
            where = self.store.where("metrics.jsonl")
            raise Failed(
                f"{where}: not readable as JSON ({error}); remove it and run the same command again"
            ) from error

    def save(self) -> None:
        self.store.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.lines).encode())


class Checkpoints:
    """`identity.json` of the run, then `step-000050.safetensors` and its marker `step-000050.json` (size, sha256)."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def claim(self, identity: Mapping[str, Any], experts: Sequence[int]) -> list[int]:
        """The folder is this run's, or refused. Its experts: those of the buffer when the run first began."""
        what, do = f"out={self.store.uri}: holds checkpoints", "give another out, or remove its checkpoints folder"
        if not self.store.exists(IDENTITY):
            if self._names():
                raise Refused(f"{what} of an unknown run, without {IDENTITY}; {do}")
            self.store.write_json(IDENTITY, {**identity, "experts": list(experts)})
            return list(experts)
        there = self.store.read_json(IDENTITY)
        frozen: list[int] = there.pop("experts")
        refuse_differing(what, there, identity, do)
        lost = sorted(set(frozen) - set(experts))
        if lost:
            raise Refused(
                f"out={self.store.uri}: began with experts {lost} that the buffer no longer has; restore them, or give "
                "another out"
            )
        return frozen

    def save(self, step: int, state: State) -> None:
        name = f"step-{step:06d}"
        data = to_bytes(state)
        self.store.write(f"{name}.safetensors", data)
        self.store.write_json(f"{name}.json", {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        self._remove(self._names()[:-KEPT])

    def clear(self) -> None:
        self._remove(self._names())
        self.store.delete(IDENTITY)

    def latest(self) -> tuple[int, State] | None:
        """The newest checkpoint that can be read whole, and its step."""
        for name in reversed(self._names()):
            try:
                return int(name.removeprefix("step-")), self._load(name)
            except Transient:
                raise
            except Failed as error:
                log.warning("%s: going back to the checkpoint before", error)
        return None

    def newest(self) -> int:
        """The step of the newest checkpoint; 0 where there is none."""
        return int(names[-1].removeprefix("step-")) if (names := self._names()) else 0

    def copy(self, to: Checkpoints, step: int, changes: Mapping[str, Any]) -> None:
        """The checkpoint of a step as that of another run, whose identity has these changes."""
        to.clear()
        to.save(step, self.at(step))
        to.store.write_json(IDENTITY, {**self.store.read_json(IDENTITY), **changes})

    def at(self, step: int) -> State:
        """The checkpoint of that step."""
        return self._load(f"step-{step:06d}")

    def _load(self, name: str) -> State:
        marker = self.store.read_json(f"{name}.json")
        data = self.store.read(f"{name}.safetensors")
        if not isinstance(marker, dict) or hashlib.sha256(data).hexdigest() != marker.get("sha256"):
            raise Failed(f"{self.store.where(name)}.safetensors: damaged, its sha256 differs from its marker's")
        return from_bytes(data, name)

    def _names(self) -> list[str]:
        return sorted(name.removesuffix(".json") for name in self.store.list("step-") if name.endswith(".json"))

    def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            self.store.delete(f"{name}.json")
            self.store.delete(f"{name}.safetensors")
