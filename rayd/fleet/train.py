"""A Ray Train (V2) job around one distillation: workers share out the items and sum their gradients once a step.

The run's own store holds every checkpoint, so Train keeps none: after a failure its workers start the same function, which
finds where the run stands. That also covers the loss of the controller or the driver: the same command, again.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import TrainingFailedError
from torch import Tensor

from rayd.config import Run
from rayd.distill import Step
from rayd.errors import Failed, Refused
from rayd.fleet import cluster
from rayd.run import Place, distil
from rayd.store import Store
from rayd.strict import parse, to_dict

log = logging.getLogger(__name__)

FAILURE = "failure.json"
REPORTS = 50
"""Reports of a whole run: each is a barrier of all workers, and our own metrics hold every step anyway."""


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
    place = Place(rank, size, reduce if size > 1 else None, get_device())
    try:
        for step in distil(run, place):
            if step.number % config["report_every"] == 0:
                ray.train.report(_metrics(step, reduce))
    except (Refused, Failed) as error:
        store.write_json(FAILURE, {"kind": type(error).__name__, "message": str(error)})
        raise


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
    cluster.require(bundle, scale.workers)
    trainer = TorchTrainer(
        worker,
        train_loop_config={"run": to_dict(run), "report_every": max(1, run.method.steps // REPORTS)},
        scaling_config=ScalingConfig(num_workers=scale.workers, use_gpu=scale.gpus > 0, resources_per_worker=bundle),
        torch_config=TorchConfig(timeout_s=600),
        run_config=RunConfig(
            name=f"distill-{uuid.uuid4().hex[:8]}",
            storage_path=cluster.train_storage(run.out),
            failure_config=FailureConfig(max_failures=scale.max_failures, controller_failure_limit=2),  # type: ignore[call-arg]
        ),
    )
    began = time.monotonic()
    try:
        trainer.fit()
    except TrainingFailedError as error:
        _raise_recorded(store)
        raise Failed(
            f"distillation: {scale.workers} workers failed {scale.max_failures + 1} times; the last checkpoint is kept in "
            f"{run.out}/checkpoints, submit the same command again to go on. Last cause: {error}"
        ) from error
    log.info("distillation finished on %d workers in %.0f s", scale.workers, time.monotonic() - began)
