"""The run around an engine: data and experts in, checkpoints, metrics, validation, selection, resume, artifact out.

Used as it is by `scale=inline` and by every Ray Train worker; worker 0 writes. All state lives in the run's own store
(`checkpoints/`, `metrics.json`, `artifact/`), so a resubmitted command goes on from the last checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from rayd.config import Run
from rayd.distill.loop import Distillation, Reduce, State, Step, identity
from rayd.errors import Failed, Refused
from rayd.machine import peak_memory, use_threads
from rayd.run.assemble import Assembled, assemble
from rayd.run.checkpoints import Checkpoints, MetricsFile
from rayd.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """Which worker this is."""

    rank: int = 0
    size: int = 1
    reduce: Reduce | None = None
    device: torch.device | None = None


def finished(run: Run, store: Store) -> bool:
    """Whether the artifact of exactly this run is already there; another run's is refused, never overwritten."""
    if not store.exists("artifact/card.json"):
        return False
    there = store.read_json("artifact/card.json").get("fingerprint")
    if there != run.fingerprint():
        raise Refused(
            f"out={run.out}: holds the artifact of another run (fingerprint {str(there)[:12]}, this one is "
            f"{run.fingerprint()[:12]}); give another out, or remove its artifact folder"
        )
    return True


def distill(run: Run, place: Worker | None = None) -> Iterator[Step]:
    """All of a distillation, from wherever it stands; yields every step and leaves the artifact in `run.out`."""
    place = place or Worker()
    store = Store(run.out)
    if finished(run, store):
        return
    use_threads(run.scale.threads)
    assembled = assemble(run, place.device or default_device())
    items = len(assembled.objective.plan(0))
    if place.size > items:
        raise Refused(
            f"scale.workers={place.size}: allowed is at most the {items} items of a step; raise method.objective.items, "
            "or lower method.objective.classes_per_item, whichever this objective has"
        )
    work = assembled.distillation((place.rank, place.size), place.reduce or identity)
    checkpoints = Checkpoints(store.sub("checkpoints"), run.fingerprint())
    recorder = Recorder(run, store, assembled, work, checkpoints, writes=place.rank == 0)
    recorder.resume()
    try:
        for step in work.run():
            recorder.after(step)
            yield step
    except (RuntimeError, MemoryError) as error:
        told = _out_of_memory(error, run, store)
        if told is None:
            raise
        raise told from error
    recorder.finish()


class Recorder:
    """What is done with the steps: measured, checkpointed, validated, selected, handed over."""

    def __init__(
        self,
        run: Run,
        store: Store,
        assembled: Assembled,
        work: Distillation,
        checkpoints: Checkpoints,
        *,
        writes: bool,
    ) -> None:
        self.run, self.store, self.assembled, self.work = run, store, assembled, work
        self.checkpoints, self.writes = checkpoints, writes
        self.log = MetricsFile(store)
        self.best: tuple[float, State] | None = None
        self.began = time.monotonic()

    def resume(self) -> None:
        state = self.checkpoints.latest()
        if state is None:
            return
        best = {k.removeprefix("best/"): v for k, v in state.items() if k.startswith("best/")}
        if best:
            self.best = (float(best.pop("accuracy")), best)
        self.work.load({k: v.to(self.assembled.device) for k, v in state.items() if not k.startswith("best/")})
        self.log.load(self.work.number)
        log.info("resumed at step %d of %d", self.work.number, self.run.method.steps)

    def after(self, step: Step) -> None:
        method = self.run.method
        line = {"step": step.number, "loss": step.value, "seconds": step.seconds, **step.metrics}
        if step.skipped:
            line["skipped"] = 1.0
            log.warning("step %d skipped: %s", step.number, step.skipped)
        last = step.number == method.steps
        if method.validate and (step.number % method.validate == 0 or last):
            line["val"] = self._validate()
        line["memory"] = float(peak_memory(self.assembled.device.type))
        self.log.lines.append(line)
        if step.number % method.checkpoint == 0 and not last:
            state = self.work.checkpoint()
            if self.writes:
                self._save(step.number, state)

    def _save(self, step: int, state: State) -> None:
        if self.best is not None:
            accuracy, codec = self.best
            state = state | {"best/accuracy": torch.tensor(accuracy)} | {f"best/{k}": v for k, v in codec.items()}
        self.log.save()
        self.checkpoints.save(step, state)
        preview = self.assembled.preview(self.work.averaged())
        self.store.write("preview.png", preview)

    def _validate(self) -> float:
        """Accuracy on the split carved out of training. Worker 0 decides; selection is its alone to hand over."""
        if not self.writes:
            return float("nan")
        codec = self.work.averaged()
        accuracy = self.assembled.validate(codec)
        if self.best is None or accuracy > self.best[0]:
            self.best = (accuracy, codec.state())
        return accuracy

    def finish(self) -> None:
        if not self.writes:
            return
        codec = self.work.averaged()
        if self.run.method.select == "best_val" and self.best is not None:
            codec.load(self.best[1])
        self.log.save()
        lines = self.log.lines
        timing = {
            "distill_s": sum(line["seconds"] for line in lines),
            "distill_peak": max((line["memory"] for line in lines), default=0.0),
            "steps": self.work.number,
        }
        method, record = self.run.method, self.work.record
        claim: dict[str, Any] = {"select": method.select, "skipped": record.skipped, "rollbacks": record.rolled}
        if self.best is not None:
            claim["best_val"] = self.best[0]
        self.assembled.write(codec, self.store, timing, claim)
        for name in self.checkpoints._names():
            self.checkpoints.store.delete(f"{name}.json")
            self.checkpoints.store.delete(f"{name}.safetensors")


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _out_of_memory(error: BaseException, run: Run, store: Store) -> Failed | None:
    """What to do about it, where memory ran out."""
    text = str(error)
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in text:
        return None
    objective: Any = run.method.objective
    knobs = [
        f"method.objective.{k}={getattr(objective, k)}"
        for k in ("micro", "batch", "inner_steps", "batch_real")
        if hasattr(objective, k)
    ]
    return Failed(
        f"out of memory: {text.splitlines()[0][:200] if text else 'no more memory'}. The last checkpoint is kept in "
        f"{store.uri}/checkpoints. Knobs: {', '.join(knobs)} (raise micro, lower the others), then submit again."
    )
