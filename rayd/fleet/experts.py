"""Experts built by Ray actors: units from the plan, one at a time for each actor, committed by the actor itself.

Only plans and counts travel through Ray: an actor reads the data from its own cache and writes its shard to the store. An
actor that is lost is replaced, and its unit goes to another, a bounded number of times; names and seeds come from the
plan, so the bytes are the same. A node that is told to stop gets no further units, and what it loses is not counted. The
driver keeps no state.
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
from rayd.errors import Failed, Refused, Transient
from rayd.experts.config import ExpertUnit
from rayd.experts.shards import differences
from rayd.fleet import cluster
from rayd.fleet.policy import Loss, after_loss, after_start, pool_size
from rayd.fleet.tasks import first_line, raised, run_tasks
from rayd.fleet.watch import TICK, Pulse, Watch, beating
from rayd.machine import free_memory, use_threads
from rayd.run.experts import ExpertPlan, build_unit, finish, start, with_less
from rayd.run.progress import Built, Progress
from rayd.schema import parse, to_dict
from rayd.store import configure

log = logging.getLogger(__name__)


class ExpertActor:
    """Reads the data once, then builds one unit after another."""

    def __init__(self, plain: Mapping[str, Any], last_epoch: int | None, pulse: Pulse, name: str) -> None:
        self.plain, self.last_epoch, self.pulse, self.name = plain, last_epoch, pulse, name

    def ready(self) -> dict[str, Any]:
        """Open the plan. Not in the constructor, whose errors Ray hides behind the actor's death."""
        with beating(self.pulse, self.name, stays=True):
            run = parse(Run, self.plain)
            use_threads(run.scale.threads)
            configure(run.store)
            self.plan = ExpertPlan.open(run, self.last_epoch)
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "node": ray.get_runtime_context().get_node_id(),
            "fingerprint": self.plan.writer.fingerprint,
        }

    def build(self, number: int) -> Built:
        with beating(self.pulse, self.name, stays=True):
            return build_unit(self.plan, self.plan.units[number])


@dataclass
class ActorSlot:
    """A place in the pool and the actor that fills it."""

    name: str
    actor: ActorHandle[Any]
    waits: ray.ObjectRef[Any]
    since: float
    unit: ExpertUnit | None = None
    """None while the actor is starting."""
    pid: int = 0
    node: str = ""
    failed_starts: int = 0
    """Of this place, in a row: a lost node takes many actors, each of which may start again elsewhere."""


class Dispatcher:
    """The pool: actors, the unit of each, the units that are left."""

    def __init__(
        self,
        plan: ExpertPlan,
        last_epoch: int | None,
        todo: list[ExpertUnit],
        progress: Progress,
        watch: Watch,
        actor_class: type[Any] = ExpertActor,
    ) -> None:
        self.plan, self.scale, self.progress, self.watch = plan, plan.run.scale, progress, watch
        self.todo = deque(todo)
        self.need, self.labels = cluster.bundle(self.scale), self.scale.selector("experts")
        options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, **cluster.options(self.need, self.labels)}
        self.remote: Any = ray.remote(**options)(actor_class)
        self.arguments = (to_dict(plan.run), last_epoch, watch.pulse)
        self.lost: dict[str, int] = {}
        self.slots: list[ActorSlot] = []
        self.started = 0
        self.completed = Counter("rayd_experts_completed", "Experts committed to the buffer")
        self.retried = Counter("rayd_experts_retried", "Units handed to another actor because theirs was lost")
        self.rate = Gauge("rayd_expert_images_per_second", "Training images per second, all actors together")
        self.bytes = Gauge("rayd_buffer_bytes", "Bytes of all committed shards")

    def run(self) -> Iterator[Progress]:
        for _ in range(pool_size(self.scale.actors, len(self.todo), self.need, cluster.nodes(self.labels))):
            self._start_actor()
        try:
            while self.todo or any(slot.unit is not None for slot in self.slots):
                self._look()
                self.progress.actors = sum(slot.pid > 0 for slot in self.slots)
                busy = [slot for slot in self.slots if slot.pid and slot.unit is not None]
                self.progress.pids = tuple(slot.pid for slot in busy)
                self.progress.now = self.watch.notes.get(busy[0].name, "") if busy else "starting"
                yield self.progress
                self.progress.last = None
        finally:
            for slot in self.slots:
                ray.kill(slot.actor)

    def _start_actor(self, failed_starts: int = 0) -> None:
        self.started += 1
        name = f"actor {self.started}"
        actor = self.remote.remote(*self.arguments, name)
        slot = ActorSlot(name, actor, actor.ready.remote(), time.monotonic(), failed_starts=failed_starts)
        self.slots.append(slot)

    def _look(self) -> None:
        """Take what came back, replace what is late, hand out units."""
        done, _ = ray.wait([slot.waits for slot in self.slots], num_returns=1, timeout=TICK)
        now = time.monotonic()
        for slot in list(self.slots):
            if slot.waits in done:
                self._receive(slot)
            elif slot.unit is None and now - slot.since > self.scale.startup and not any(s.unit for s in self.slots):
                limit = f"it took more than scale.startup={self.scale.startup:g} s; raise it"
                self._lose_start(slot, Loss.LATE, limit)

    def _receive(self, slot: ActorSlot) -> None:
        try:
            answer = ray.get(slot.waits, timeout=self.scale.startup)
        except (ActorDiedError, WorkerCrashedError, OutOfMemoryError) as error:
            return self._lose(slot, Loss.DIED, self.watch.why(slot.name, first_line(error)))
        except (ActorUnavailableError, ObjectLostError, GetTimeoutError) as error:
            return self._lose(slot, Loss.UNREACHABLE, first_line(error))
        except RayTaskError as error:
            return self._raised(slot, error)
        if slot.unit is None:
            self._check_in(slot, answer)
        else:
            self._account(answer, slot.unit)
        self._hand_out(slot)

    def _raised(self, slot: ActorSlot, error: RayTaskError) -> None:
        final = raised(error)
        if isinstance(final, Transient):
            return self._lose(slot, Loss.STORAGE, first_line(final))
        if final is not None:
            if slot.unit is not None or not any(other.pid for other in self.slots):
                raise final from error
            return self._lose(slot, Loss.REFUSED, first_line(final))
        if isinstance(error.cause, OSError):
            return self._lose(slot, Loss.STORAGE, first_line(error.cause))
        return self._lose(slot, Loss.BUG, str(error))

    def _check_in(self, slot: ActorSlot, answer: Mapping[str, Any]) -> None:
        if answer["fingerprint"] != self.plan.writer.fingerprint:
            lines = differences(answer["fingerprint"], self.plan.writer.fingerprint)
            raise Refused(
                f"{slot.name} on {answer['host']} would build other experts than this run's: {'; '.join(lines)}"
            )
        if not any(other.pid for other in self.slots) and not self.progress.done:
            self.progress.began = time.monotonic()  # the pace is that of working actors, without Ray's start
        slot.pid, slot.node, slot.failed_starts = answer["pid"], answer["node"], 0
        log.info("%s ready on %s, process %d", slot.name, answer["host"], slot.pid)

    def _account(self, built: Built, unit: ExpertUnit) -> None:
        self.progress.add(built, len(unit.experts))
        if built.failure is None:
            self.completed.inc(len(unit.experts))
            self.rate.set(self.progress.rate)
            self.bytes.set(self.progress.bytes)

    def _hand_out(self, slot: ActorSlot) -> None:
        if not self.todo:
            return self._remove(slot)
        if slot.node in self.watch.leaving:
            log.info("%s: its node is told to stop and gets no further units", slot.name)
            self._remove(slot)
            return self._start_actor()
        slot.unit = self.todo.popleft()
        slot.waits, slot.since = slot.actor.build.remote(slot.unit.number), time.monotonic()

    def _remove(self, slot: ActorSlot) -> None:
        self.slots.remove(slot)
        ray.kill(slot.actor)
        self.watch.forget(slot.name)

    def _lose(self, slot: ActorSlot, loss: Loss, detail: str) -> None:
        """A unit that did not come back."""
        if slot.unit is None:
            return self._lose_start(slot, loss, detail)
        unit, what = slot.unit, f"{slot.unit.name} on {slot.name}"
        if loss.takes_the_worker and slot.node in self.watch.notices():
            log.warning("%s: its node was taken back; handed to another", what)
            replace = True
        else:
            attempts = self.lost[unit.name] = self.lost.get(unit.name, 0) + 1
            decision = after_loss(what, loss, attempts, self.scale.max_failures, detail)
            log.warning("%s", decision.reason)
            self.watch.record("lost", decision.reason, group=slot.name)
            if not decision.again:
                raise Failed(f"{decision.reason}. Committed shards stay; once it is mended, the same command continues")
            replace = decision.replace
        self.todo.appendleft(unit)
        self.progress.retried += 1
        self.retried.inc()
        if replace:
            self._remove(slot)
            self._start_actor()
        else:
            self._hand_out(slot)

    def _lose_start(self, slot: ActorSlot, loss: Loss, detail: str) -> None:
        """An actor that did not get ready."""
        others = sum(other.pid > 0 for other in self.slots)
        decision = after_start(slot.name, loss, slot.failed_starts + 1, self.scale.max_failures, others, detail)
        log.warning("%s", decision.reason)
        self.watch.record("lost", decision.reason, group=slot.name)
        self._remove(slot)
        if decision.again:
            self._start_actor(slot.failed_starts + 1)
        elif not others:
            raise Failed(f"{decision.reason}. Committed shards stay; once it is mended, the same command continues")


def build(plan: ExpertPlan, last_epoch: int | None = None, actor_class: type[Any] = ExpertActor) -> Iterator[Progress]:
    """Build every unit that is not committed yet, with the actors of the run's scale.

    A driver need not have a GPU: the micro-batch is then planned by the memory that is free where an actor would be.
    """
    if not plan.run.expert.micro:
        scale = plan.run.scale
        cluster.start(scale)
        count = max(1, min(scale.actors, len(plan.units)))
        cluster.require(cluster.bundle(scale), count, "expert actor", scale.wait, scale.selector("experts"))
        ((_, free),) = run_tasks(plan.run, "experts", _free, [plan.device_type])
        plan = ExpertPlan.open(plan.run, last_epoch, lambda _: free)
    yield from with_less(lambda chosen: _by_actors(chosen, last_epoch, actor_class), plan)


def _free(run: Run, device_type: str) -> int:
    return free_memory(device_type)


def _by_actors(plan: ExpertPlan, last_epoch: int | None, actor_class: type[Any]) -> Iterator[Progress]:
    scale = plan.run.scale
    todo, progress = start(plan)
    yield progress
    if todo:
        cluster.start(scale)
        count = max(1, min(scale.actors, len(todo)))
        cluster.require(cluster.bundle(scale), count, "expert actor", scale.wait, scale.selector("experts"))
        with Watch(scale, plan.run.out, "experts") as watch:
            yield from Dispatcher(plan, last_epoch, todo, progress, watch, actor_class).run()
    finish(plan, progress)
