"""Beats of Ray Train's controller, an actor that starts, polls and restarts the workers: it too can stand still.

Train calls every callback that is not a UserCallback where its own internal ones are called.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import RunningState

from rayd.fleet.monitor import CONTROLLER, Member
from rayd.fleet.watch import Pulse


class ControllerBeats(ControllerCallback, WorkerGroupCallback):
    """It beats with every poll of its workers, and may take as long as any start-up to place them."""

    def __init__(self, pulse: Pulse, group: str) -> None:
        self.pulse, self.group = pulse, f"{group}{CONTROLLER}"
        self.sent = 0.0

    def after_controller_start(self, train_run_context: Any) -> None:
        self.monitor: Any = ray.get_actor(self.pulse.monitor)
        self.member = Member.here()
        self.monitor.begin.remote(self.group, self.member, self.pulse.startup, {})

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        self._beat(self.pulse.beat if isinstance(current_state, RunningState) else self.pulse.startup)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        if time.monotonic() - self.sent > 1.0:
            self._beat(self.pulse.beat)

    async def before_controller_shutdown(self) -> None:
        self.monitor.end.remote(self.group, self.member)

    def before_controller_abort(self) -> None:
        self.monitor.end.remote(self.group, self.member)

    def _beat(self, allowed: float) -> None:
        self.sent = time.monotonic()
        self.monitor.beat.remote(self.group, self.member, "", max(allowed, self.pulse.beat))
