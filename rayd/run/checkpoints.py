"""Checkpoints and metrics of a distillation."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field

from rayd.artifact import tensors
from rayd.distill.loop import State
from rayd.errors import Refused
from rayd.store import Store

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints kept: the newest, and one before it should the newest turn out damaged."""


@dataclass
class MetricsFile:
    """`metrics.jsonl`: a line for every step so far, cut back to the checkpoint on a resume."""

    store: Store
    lines: list[dict[str, float]] = field(default_factory=list)

    def load(self, step: int) -> None:
        if self.store.exists("metrics.jsonl"):
            text = self.store.read("metrics.jsonl").decode()
            self.lines = [line for line in map(json.loads, text.splitlines()) if line["step"] <= step]

    def save(self) -> None:
        self.store.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.lines).encode())


class Checkpoints:
    """`step-000050.safetensors`, then its marker `step-000050.json` (size, sha256, fingerprint)."""

    def __init__(self, store: Store, fingerprint: str) -> None:
        self.store, self.fingerprint = store, fingerprint

    def save(self, step: int, state: State) -> None:
        name = f"step-{step:06d}"
        data = tensors.to_bytes(state)
        self.store.write(f"{name}.safetensors", data)
        marker = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "run": self.fingerprint}
        self.store.write_json(f"{name}.json", marker)
        self.clear(keep=KEPT)

    def clear(self, keep: int = 0) -> None:
        """Remove all but the newest."""
        names = self._names()
        for name in names[: len(names) - keep]:
            self.store.delete(f"{name}.json")
            self.store.delete(f"{name}.safetensors")

    def latest(self) -> State | None:
        for name in reversed(self._names()):
            marker = self.store.read_json(f"{name}.json")
            if marker["run"] != self.fingerprint:
                raise Refused(
                    f"out={self.store.uri}: holds checkpoints of another run ({marker['run'][:12]}, this one is "
                    f"{self.fingerprint[:12]}); give another out, or remove its checkpoints folder"
                )
            data = self.store.read(f"{name}.safetensors")
            if hashlib.sha256(data).hexdigest() == marker["sha256"]:
                return tensors.from_bytes(data, name)
            log.warning(
                "checkpoint %s of %s is damaged (sha256 differs): going back to the one before", name, self.store.uri
            )
        return None

    def _names(self) -> list[str]:
        return sorted(name.removesuffix(".json") for name in self.store.list("step-") if name.endswith(".json"))
