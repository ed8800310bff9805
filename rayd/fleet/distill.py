"""A Ray Train (V2) job around one distillation: workers share out the items and sum their gradients once a step.

The run's own store holds every checkpoint, so Train keeps none: after a failure its workers start the same function, which
finds where the run stands. That also covers the loss of the controller or the driver: the same command, again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train import CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError
from ray.util.metrics import Gauge
from torch import Tensor

from rayd.config import Run
from rayd.distill.loop import Step, identity
from rayd.errors import Failed, Refused
from rayd.fleet import cluster
from rayd.machine import ONE_ARENA
from rayd.run.distill import Worker, distill
from rayd.schema import parse, to_dict
from rayd.store import Store

log = logging.getLogger(__name__)

FAILURE = "failure.json"
STATUS = "status.json"
SAY_SECONDS = 10.0
"""Between two lines of progress, which worker 0 leaves in the store for the driver to say."""
LATER = CheckpointUploadMode.ASYNC
REPORTS = 8
"""Of a whole run, for Ray's own dashboard (our metrics hold every step): Train takes in one every two seconds, and an
asynchronous one does not make the steps wait for that."""
FEW = 10
"""Steps between two reports, at least: a short run would wait for its reports at its end."""


PLACING = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Train gives a worker group a minute to be placed, and a cluster that is busy with other jobs may take longer."""


class AllReduce:
    """Sums a flat vector over the workers; counts what it sent."""

    def __init__(self) -> None:
        self.bytes = 0
        self.calls = 0

    def __call__(self, flat: Tensor) -> Tensor:
        self.bytes += flat.numel() * flat.element_size()
        self.calls += 1
        dist.all_reduce(flat)
        return flat


def worker(config: Mapping[str, Any]) -> None:
    """What each Train worker runs. A run that cannot go on says so in the store: trying it again would end alike."""
    run = parse(Run, config["run"])
    store = Store(run.out)
    _raise_recorded(store)
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    reduce = AllReduce()
    place = Worker(rank, size, reduce if size > 1 else identity, get_device())
    try:
        said = 0.0
        for step in distill(run, place):
            if rank == 0 and time.monotonic() - said > SAY_SECONDS / 2:
                said = time.monotonic()
                _tell(run, store, step)
            if step.number % config["report_every"] == 0:
                ray.train.report(_metrics(step, reduce), checkpoint_upload_mode=LATER)
    except (Refused, Failed) as error:
        store.write_json(FAILURE, {"kind": type(error).__name__, "message": str(error)})
        raise


def _tell(run: Run, store: Store, step: Step) -> None:
    """Where the run stands, for the driver's log and for whoever watches the metrics (`ray_rayd_*`)."""
    rest = {
        "step": step.number,
        "loss": step.value,
        "seconds": step.seconds,
        "step_size": step.metrics.get("step_size", 0.0),
    }
    if all(value == value for value in rest.values()):
        store.write_json(STATUS, rest)
    for name, value in rest.items():
        gauge = Gauge(f"rayd_distill_{name}", description=f"Distillation: {name} of the last step.", tag_keys=("out",))
        gauge.set(value, tags={"out": run.out})


@contextlib.contextmanager
def _saying(run: Run, store: Store) -> Iterator[None]:
    """While the driver waits, a line now and then: step, loss, seconds a step, what is left."""
    done = threading.Event()

    def say() -> None:
        last = 0
        while not done.wait(SAY_SECONDS):
            if not store.exists(STATUS):
                continue
            told = store.read_json(STATUS)
            if told["step"] != last:
                last, left = told["step"], (run.method.steps - told["step"]) * told["seconds"]
                log.info(
                    "distill  step %d/%d  loss %.4f  %.2f s/step  about %d s left",
                    last, run.method.steps, told["loss"], told["seconds"], left,
                )  # fmt: skip

    thread = threading.Thread(target=say, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        store.delete(STATUS)


def _raise_recorded(store: Store) -> None:
    if not store.exists(FAILURE):
        return
    told = store.read_json(FAILURE)
    raise (Refused if told["kind"] == "Refused" else Failed)(told["message"])


def _metrics(step: Step, reduce: AllReduce) -> dict[str, float]:
    sent = reduce.bytes / max(reduce.calls, 1)
    return {"step": step.number, "loss": step.value, "seconds": step.seconds, "bytes_per_step": sent, **step.metrics}


def train(run: Run) -> None:
    """The distillation of `run` on the cluster of its scale; returns when the artifact is written."""
    scale, store = run.scale, Store(run.out)
    if store.exists(FAILURE):
        store.delete(FAILURE)
    cluster.start(scale)
    bundle = cluster.bundle(scale)
    cluster.require(bundle, scale.workers, wait=scale.wait)
    os.environ[PLACING] = str(scale.timeout)
    trainer = TorchTrainer(
        worker,
        train_loop_config={"run": to_dict(run), "report_every": max(FEW, run.method.steps // REPORTS)},
        scaling_config=ScalingConfig(num_workers=scale.workers, use_gpu=scale.gpus > 0, resources_per_worker=bundle),
        torch_config=TorchConfig(timeout_s=600),
        run_config=RunConfig(
            name=f"distill-{uuid.uuid4().hex[:8]}",
            storage_path=cluster.train_storage(run.out),
            worker_runtime_env={"env_vars": ONE_ARENA},
            failure_config=FailureConfig(max_failures=scale.max_failures, controller_failure_limit=2),  # type: ignore[call-arg]
        ),
    )
    began = time.monotonic()
    try:
        with _saying(run, store):
            trainer.fit()
    except TrainingFailedError as error:
        _raise_recorded(store)
        what = f"{scale.workers} workers failed {scale.max_failures + 1} times"
        if isinstance(error, ControllerError):
            what = f"{scale.workers} workers could not be kept (scale.timeout={scale.timeout:g} s is what a place may take)"
        raise Failed(
            f"distillation: {what}; the last checkpoint is kept in {run.out}/checkpoints, submit the same command again to "
            f"go on. Last cause: {error}"
        ) from error
    log.info("distillation finished on %d workers in %.0f s", scale.workers, time.monotonic() - began)
