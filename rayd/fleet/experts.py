"""Experts made by Ray actors: units from the plan, one at a time for each actor, committed by the actor itself.

Nothing but plans and counts travels through Ray: an actor reads the data from its own cache and writes its shard to
the store. An actor that dies, hangs or cannot be reached is replaced, and its unit goes to another, a bounded number of
times; names and seeds come from the plan, so the bytes are the same. The driver keeps no state.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.metrics import Counter, Gauge

from rayd.config import Run
from rayd.errors import Failed, Refused
from rayd.experts.config import ExpertUnit
from rayd.fleet import cluster
from rayd.fleet.policy import Loss, after_loss, pool_size
from rayd.machine import use_threads
from rayd.run.experts import ExpertPlan, build_unit, finish, start
from rayd.run.progress import Built, Progress
from rayd.schema import parse, to_dict

log = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between two looks at what has come back; a Progress is yielded at least that often."""


class ExpertActor:
    """One actor: reads the data once, then makes the units it is given."""

    def __init__(self, plain: Mapping[str, Any], last_epoch: int | None) -> None:
        run = parse(Run, plain)
        use_threads(run.scale.threads)
        self.plan = ExpertPlan.open(run, last_epoch)

    def ready(self) -> dict[str, Any]:
        """Who this is, and under which fingerprint it would write."""
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "versions": cluster.versions(),
            "fingerprint": self.plan.writer.fingerprint,
        }

    def build(self, number: int) -> Built:
        return build_unit(self.plan, self.plan.units[number])


@dataclass
class ActorSlot:
    """An actor as the driver knows it."""

    name: str
    actor: ActorHandle[Any]
    waits: ray.ObjectRef[Any]
    since: float
    unit: ExpertUnit | None = None
    """None while it is starting."""
    pid: int = 0


class Dispatcher:
    """The dispatcher: actors, what each is at, what is left."""

    actor_class: type[Any] = ExpertActor

    def __init__(self, plan: ExpertPlan, last_epoch: int | None, todo: list[ExpertUnit], progress: Progress) -> None:
        self.plan, self.scale, self.progress = plan, plan.run.scale, progress
        self.todo = deque(todo)
        self.need = cluster.bundle(self.scale)
        self.remote = ray.remote(self.actor_class).options(
            max_restarts=0, max_task_retries=0, **cluster.options(self.need)
        )
        self.arguments = (to_dict(plan.run), last_epoch)
        self.lost: dict[str, int] = {}
        self.failed_starts = 0
        """Actors in a row that ended before they were ready."""
        self.hands: list[ActorSlot] = []
        self.counts = 0
        self.made = Counter("rayd_experts_completed", "Experts committed to the buffer")
        self.rate = Gauge("rayd_expert_images_per_second", "Training images per second, all actors together")
        self.bytes = Gauge("rayd_buffer_bytes", "Bytes of all committed shards")

    def run(self) -> Iterator[Progress]:
        size = pool_size(self.scale.actors, len(self.todo), self.need, cluster.nodes())
        for _ in range(size):
            self._start_actor()
        try:
            while self.todo or any(hand.unit is not None for hand in self.hands):
                self._look()
                self.progress.actors = sum(hand.pid > 0 for hand in self.hands)
                self.progress.pids = tuple(hand.pid for hand in self.hands if hand.pid and hand.unit is not None)
                yield self.progress
                self.progress.last = None
        finally:
            for hand in self.hands:
                ray.kill(hand.actor)

    def _start_actor(self) -> None:
        self.counts += 1
        actor = self.remote.remote(*self.arguments)
        self.hands.append(ActorSlot(f"actor {self.counts}", actor, actor.ready.remote(), time.monotonic()))

    def _look(self) -> None:
        """Whatever came back, is late, or can be handed out."""
        refs = [hand.waits for hand in self.hands]
        done, _ = ray.wait(refs, num_returns=1, timeout=TICK)
        now = time.monotonic()
        for hand in list(self.hands):
            if hand.waits in done:
                self._receive(hand)
            elif now - hand.since > self.scale.timeout and (hand.unit is not None or not self._anyone_works()):
                what = "starting" if hand.unit is None else "a unit"
                self._lose(
                    hand,
                    Loss.LATE,
                    f"{what} took more than scale.timeout={self.scale.timeout:g} s; raise it or lower expert.per_shard",
                )

    def _anyone_works(self) -> bool:
        return any(hand.unit is not None for hand in self.hands)

    def _receive(self, hand: ActorSlot) -> None:
        try:
            answer = ray.get(hand.waits, timeout=self.scale.timeout)
        except (ActorDiedError, WorkerCrashedError, OutOfMemoryError) as error:
            return self._lose(hand, Loss.DIED, first_line(error))
        except (ActorUnavailableError, ObjectLostError, GetTimeoutError) as error:
            return self._lose(hand, Loss.UNREACHABLE, first_line(error))
        except RayTaskError as error:
            if isinstance(error.cause, Refused | Failed):
                raise type(error.cause)(str(error.cause)) from error
            if isinstance(error.cause, OSError):
                return self._lose(hand, Loss.STORAGE, first_line(error.cause))
            return self._lose(hand, Loss.BUG, str(error))
        if hand.unit is None:
            self._check_in(hand, answer)
        else:
            self._account(answer, hand.unit)
        self._hand_out(hand)

    def _check_in(self, hand: ActorSlot, answer: Mapping[str, Any]) -> None:
        cluster.same_versions(answer["versions"], f"{hand.name} on {answer['host']}")
        if answer["fingerprint"] != self.plan.writer.fingerprint:
            from rayd.experts.shards import differences

            found = differences(answer["fingerprint"], self.plan.writer.fingerprint)
            raise Refused(
                f"{hand.name} on {answer['host']} would make other experts than this run's: {'; '.join(found)}"
            )
        if not any(other.pid for other in self.hands) and not self.progress.done:
            self.progress.began = time.monotonic()  # the pace is that of working actors, not of Ray's start
        hand.pid, self.failed_starts = answer["pid"], 0
        log.info("%s ready on %s, process %d", hand.name, answer["host"], hand.pid)

    def _account(self, built: Built, unit: ExpertUnit) -> None:
        self.progress.add(built, len(unit.experts))
        if built.failure is None:
            self.made.inc(len(unit.experts))
            self.rate.set(self.progress.rate)
            self.bytes.set(self.progress.bytes)

    def _hand_out(self, hand: ActorSlot) -> None:
        if not self.todo:
            self.hands.remove(hand)
            ray.kill(hand.actor)
            return
        hand.unit = self.todo.popleft()
        hand.waits, hand.since = hand.actor.build.remote(hand.unit.number), time.monotonic()

    def _lose(self, hand: ActorSlot, loss: Loss, detail: str) -> None:
        """A unit, or a start, that did not come back."""
        unit, what = hand.unit, hand.name if hand.unit is None else f"{hand.unit.name} on {hand.name}"
        if unit is None:
            self.failed_starts += 1
            attempts = self.failed_starts
        else:
            attempts = self.lost[unit.name] = self.lost.get(unit.name, 0) + 1
        decision = after_loss(what, loss, attempts, self.scale.max_failures, detail)
        log.warning("%s", decision.reason)
        if not decision.again:
            raise Failed(f"{decision.reason}. Committed shards stay; once it is mended, the same command continues")
        if unit is not None:
            self.todo.appendleft(unit)
            self.progress.retried += 1
        if decision.replace or unit is None:
            self.hands.remove(hand)
            ray.kill(hand.actor)
            self._start_actor()
        else:
            self._hand_out(hand)


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def build(plan: ExpertPlan, last_epoch: int | None = None) -> Iterator[Progress]:
    """Every unit that is not committed yet, by the actors of the run's scale."""
    scale = plan.run.scale
    todo, progress = start(plan)
    yield progress
    if todo:
        cluster.start(scale)
        need = cluster.bundle(scale)
        cluster.require(need, max(1, min(scale.actors, len(todo))), what="expert actor", wait=scale.wait)
        yield from Dispatcher(plan, last_epoch, todo, progress).run()
    finish(plan, progress)
