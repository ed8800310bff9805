"""A Ray Train (V2) job around one distillation: workers share out the items and sum their gradients once a step.

The run's own store holds every checkpoint, so Train keeps none: after a failure its workers start the same function, which
finds where the run stands. That also covers the loss of the driver: the same command, again. Train counts the nodes that a
cloud takes back apart from failures, and tries again without limit. Its elastic sizes are left out: a group of another
size would give the same set, but each node that joins would restart all workers at their last checkpoint.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import ray.train
from ray.exceptions import RayActorError
from ray.train import CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError
from ray.util.metrics import Gauge

from rayd.config import Run
from rayd.config.scale import ScaleConfig
from rayd.data.load import load as load_data
from rayd.distill.loop import Step, identity
from rayd.errors import Failed, Refused, Transient, refuse
from rayd.fleet import cluster
from rayd.fleet.controller import ControllerBeats
from rayd.fleet.distill_blocks import block_runs, distill_blocks, is_parted
from rayd.fleet.monitor import CONTROLLER
from rayd.fleet.policy import Loss, after_loss
from rayd.fleet.tasks import first_line
from rayd.fleet.watch import Pulse, Watch, beating
from rayd.machine import ONE_ARENA, beat
from rayd.numbers import duration
from rayd.run import distill as run_distill
from rayd.run.agreement import AllReduce
from rayd.schema import parse, to_dict
from rayd.store import Lease, Store

log = logging.getLogger(__name__)

FAILURE = "failure.json"
GROUP = "distill"
LATER = CheckpointUploadMode.ASYNC
REPORTS = 8
"""Of a whole run, for Ray's own dashboard (our metrics hold every step): Train takes in one every two seconds, and an
asynchronous one does not make the steps wait for that."""
FEW = 10
"""Steps between two reports, at least: a short run would wait for its reports at its end."""
NOTICE_EVERY = 5.0
"""Seconds between two questions which nodes are told to stop."""
PLACING = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Train gives a worker group a minute to be placed, and a cluster that is busy with other jobs may take longer."""
ANSWERING = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
"""How long a worker may leave Train's controller without an answer."""


class Notice:
    """Whether a node of the cluster was told to stop since the last question."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.last = -NOTICE_EVERY

    def __call__(self) -> bool:
        if time.monotonic() - self.last < NOTICE_EVERY:
            return False
        self.last = time.monotonic()
        fresh = cluster.draining() - self.known
        self.known |= fresh
        return bool(fresh)


def worker(config: Mapping[str, Any]) -> None:
    """What each Train worker runs. An error that would come again is written to the store, which ends the run."""
    run = parse(Run, config["run"])
    store = Store(run.out)
    _raise_recorded(store)
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    reduce = AllReduce()
    place = run_distill.Worker(rank, size, reduce if size > 1 else identity, reduce.group, get_device(), Notice())
    waited = 0.0
    with beating(Pulse(**config["pulse"]), config["group"], rank):
        try:
            for step in run_distill.distill(run, place):
                own = {"out": run.out, "rank": str(rank)}
                _rank_seconds().set(max(0.0, step.seconds - (reduce.seconds - waited)), tags=own)
                waited = reduce.seconds
                if rank == 0:
                    beat(_note(run, step))
                    _measure(run, step)
                else:
                    beat("")
                if step.number % config["report_every"] == 0:
                    ray.train.report(_metrics(step, reduce), checkpoint_upload_mode=LATER)
        except Transient:
            raise
        except (Refused, Failed) as error:
            store.write_json(FAILURE, {"kind": type(error).__name__, "message": str(error)})
            raise


def _note(run: Run, step: Step) -> str:
    left = duration((run.method.steps - step.number) * step.seconds)
    return f"step {step.number}/{run.method.steps}  loss {step.value:.4f}  {step.seconds:.2f} s/step  about {left} left"


@cache
def _gauges() -> tuple[tuple[str, Gauge], ...]:
    """Where the run stands, for the dashboard (`ray_rayd_*`)."""
    keys = ("out",)
    return (
        ("step", Gauge("rayd_distill_step", "Number of the last step", keys)),
        ("loss", Gauge("rayd_distill_loss", "Loss of the last step", keys)),
        ("seconds", Gauge("rayd_distill_seconds", "Seconds of the last step", keys)),
        ("step_size", Gauge("rayd_distill_step_size", "The learned step size", keys)),
    )


@cache
def _rank_seconds() -> Gauge:
    """The slowest worker waits for nobody, and all the others for it."""
    keys = ("out", "rank")
    return Gauge("rayd_distill_rank_seconds", "Seconds of the last step that a worker did not wait for others", keys)


def _measure(run: Run, step: Step) -> None:
    numbers = {"step": step.number, "loss": step.value, "seconds": step.seconds, "step_size": 0.0, **step.metrics}
    for name, gauge in _gauges():
        gauge.set(numbers[name], tags={"out": run.out})


def _raise_recorded(store: Store) -> None:
    if store.exists(FAILURE):
        failure = store.read_json(FAILURE)
        raise (Refused if failure["kind"] == "Refused" else Failed)(failure["message"])


def _metrics(step: Step, reduce: AllReduce) -> dict[str, float]:
    numbers = {"step": step.number, "loss": step.value, "seconds": step.seconds}
    return {**numbers, "bytes_per_step": reduce.bytes_per_step, **step.metrics}


def trainer(
    run: Run,
    pulse: Pulse,
    group: str,
    report_every: int,
    callbacks: Sequence[Any] = (),
    stage: str = "distill",
) -> TorchTrainer:
    """The Train job of a run: workers, limits, and no checkpoints of its own."""
    scale = run.scale
    limits: dict[str, Any] = {"max_failures": scale.max_failures, "controller_failure_limit": 2}
    labels: dict[str, Any] = {"label_selector": scale.selector(stage) or None}
    settings: dict[str, Any] = {
        "callbacks": [*callbacks, ControllerBeats(pulse, group)],
        "failure_config": FailureConfig(**limits),
        "worker_runtime_env": {"env_vars": ONE_ARENA | ({} if run.scale.gpus else cluster.NO_GPU)},
    }
    return TorchTrainer(
        worker,
        train_loop_config={"run": to_dict(run), "report_every": report_every, "pulse": vars(pulse), "group": group},
        scaling_config=ScalingConfig(
            num_workers=scale.workers,
            use_gpu=scale.gpus > 0,
            resources_per_worker=cluster.bundle(scale),
            **labels,
        ),
        torch_config=TorchConfig(timeout_s=int(scale.timeout)),
        run_config=RunConfig(
            name=f"{group.replace(' ', '-')}-{uuid.uuid4().hex[:8]}",
            storage_path=cluster.train_storage(run.out),
            **settings,
        ),
    )


def limit_waits(scale: ScaleConfig) -> None:
    """Train reads these from the driver's environment."""
    os.environ[PLACING] = str(scale.startup)
    os.environ[ANSWERING] = str(scale.beat)


def distill(run: Run) -> Iterator[Step]:
    """The distillation of `run` on the cluster of its scale. Yields nothing: the workers take the steps, and the log shows
    them."""
    splits = load_data(run.data) if run.scale.workers == 1 and is_parted(run) else None
    blocks = block_runs(run, splits) if splits is not None else []
    with Lease(Store(run.out)):
        if blocks:
            distill_blocks(run, blocks, splits)
        else:
            _train(run)
    yield from ()


def _fit(run: Run, watch: Watch) -> None:
    """Train to its end. Train restarts workers by itself, but nobody restarts its controller."""
    limit = run.scale.max_failures
    for attempt in range(1, limit + 2):
        try:
            trainer(run, watch.pulse, GROUP, max(FEW, run.method.steps // REPORTS)).fit()
            return
        except RayActorError as error:
            why = watch.why(f"{GROUP}{CONTROLLER}", first_line(error))
            decision = after_loss("the controller of the workers", Loss.DIED, attempt, limit, why)
            log.warning("%s", decision.reason)
            watch.record("lost", decision.reason)
            if not decision.again:
                raise Failed(f"distillation: {decision.reason}; submit the same command again to go on") from error


def _train(run: Run) -> None:
    scale, store = run.scale, Store(run.out)
    if store.exists(FAILURE):
        store.delete(FAILURE)
    if scale.workers > 1 and 0 < scale.gpus < 1:
        why = "a whole number where a distillation has several workers"
        raise refuse("scale.gpus", scale.gpus, why, "NCCL refuses two workers on one GPU: set scale.workers=1")
    limit_waits(scale)
    cluster.start(scale)
    cluster.require(cluster.bundle(scale), scale.workers, wait=scale.wait, selector=scale.selector("distill"))
    began = time.monotonic()
    try:
        with Watch(scale, run.out, GROUP, shows=True) as watch:
            _fit(run, watch)
    except TrainingFailedError as error:
        _raise_recorded(store)
        reason = f"{scale.workers} workers failed {scale.max_failures + 1} times"
        if isinstance(error, ControllerError):
            reason = f"{scale.workers} workers could not be placed or kept within scale.startup={scale.startup:g} s"
        raise Failed(
            f"distillation: {reason}; the last checkpoint is kept in {run.out}/checkpoints, submit the same command again "
            f"to go on. Last cause: {watch.why(GROUP, str(error))}"
        ) from error
    log.info("distillation finished on %d workers in %s", scale.workers, duration(time.monotonic() - began))
