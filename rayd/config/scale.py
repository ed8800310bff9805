"""Where the work of a run takes place, and the bounds of every wait there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rayd.errors import refuse
from rayd.schema import positive


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Where the work runs. Results do not depend on it, but for `threads`, which is part of the plan."""

    name: Literal["inline", "laptop", "cluster"] = "inline"
    """inline: this process, no Ray; laptop: Ray started in this process; cluster: the one the job was submitted to."""
    actors: int = 0
    """Expert actors; 0: as many as the resources hold."""
    workers: int = 1
    """Ray Train workers that share a distillation's items."""
    cpus: float = 1.0
    """CPU cores of one actor, worker or task."""
    gpus: float = 0.0
    """GPUs of one actor, worker or task: 0, 1 or 1/k; 0 computes on the CPU, whatever the machine has."""
    threads: int = 1
    """Torch threads of one actor, worker or task, inline too."""
    max_failures: int = 3
    """How often a lost unit, worker group or task is tried again."""
    timeout: float = 600.0
    """Seconds that a collective of Ray Train workers may take."""
    startup: float = 900.0
    """Seconds that actors, workers and tasks may take to be placed and to get ready."""
    beat: float = 600.0
    """Seconds without a step, a batch or a network after which work counts as hung: it is ended and tried again."""
    wait: float = 0.0
    """Seconds that nodes may take to come where an autoscaler launches them; 0 refuses at once what cannot be placed."""
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Label selectors of Ray by stage (all: the other stages), as in {experts: {ray.io/market-type: spot}}."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "timeout", "startup", "beat"):
            positive(f"scale.{name}", getattr(self, name))
        stages = ("prepare", "experts", "distill", "evaluate", "search", "all")
        if wrong := set(self.labels) - set(stages):
            raise refuse("scale.labels", min(wrong), " | ".join(stages))
        for name in ("actors", "cpus", "gpus", "max_failures", "wait"):
            if getattr(self, name) < 0:
                raise refuse(f"scale.{name}", getattr(self, name), "zero or more")
        if self.gpus > 1 or (self.gpus and abs(1 / self.gpus - round(1 / self.gpus)) > 0.01 / self.gpus):
            raise refuse(
                "scale.gpus", self.gpus, "0, 1 or 1/k, which tile a GPU", "raise scale.workers or scale.actors"
            )
        if 0 < self.gpus < 1 and self.workers > 1:
            raise refuse("scale.gpus", self.gpus, f"1 where scale.workers={self.workers}: NCCL takes one worker a GPU")
        if self.name == "inline" and self.workers != 1:
            raise refuse("scale.workers", self.workers, "1 under scale=inline", "add scale=laptop")

    def selector(self, stage: str) -> dict[str, str]:
        """Labels that a node must have for work of a stage."""
        return dict(self.labels.get(stage, self.labels.get("all", {})))
