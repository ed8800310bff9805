"""A Ray Train (V2) job around one distillation: workers share out the items and sum their gradients once a step.

The run's own store holds every checkpoint, so Train keeps none: after a failure its workers start the same function, which
finds where the run stands. That also covers the loss of the controller or the driver: the same command, again.
"""

from __future__ import annotations

import datetime
import logging
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import TrainingFailedError
from torch import Tensor

from rayd.config import Run, from_dict, to_dict
from rayd.distill import Step
from rayd.errors import Failed, Refused
from rayd.fleet import cluster
from rayd.run import Place, distil

log = logging.getLogger(__name__)

REPORT_SECONDS = 5.0
"""Each report is a barrier of all workers; steps are counted in our own metrics whatever Train hears of."""


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
    """What each Train worker runs."""
    run = from_dict(Run, config["run"])
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    reduce = AllReduce()
    place = Place(rank, size, reduce if size > 1 else None, get_device())
    for step in distil(run, place):
        if step.number % config["report_every"] == 0:
            ray.train.report(_metrics(step, reduce))


def _metrics(step: Step, reduce: AllReduce) -> dict[str, float]:
    sent = reduce.bytes / max(reduce.calls, 1)
    return {"step": step.number, "loss": step.value, "seconds": step.seconds, "bytes_per_step": sent, **step.metrics}


def train(run: Run) -> None:
    """The distillation of `run` on the cluster of its scale; returns when the artifact is written."""
    scale = run.scale
    bundle = cluster.bundle(scale)
    cluster.start(scale)
    cluster.require(bundle, scale.workers, what="distillation worker")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")
    trainer = TorchTrainer(
        worker,
        train_loop_config={"run": to_dict(run), "report_every": max(1, run.method.steps // 100)},
        scaling_config=ScalingConfig(num_workers=scale.workers, use_gpu=bundle.get("GPU", 0) > 0, resources_per_worker=bundle),
        torch_config=TorchConfig(timeout_s=int(scale.timeout)),
        run_config=RunConfig(
            name=f"distill-{uuid.uuid4().hex[:8]}",
            storage_path=cluster.train_storage(run.out),
            failure_config=FailureConfig(max_failures=scale.max_failures, controller_failure_limit=2),
        ),
    )
    began = time.monotonic()
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _explain(error) from error
    log.info("distillation finished on %d workers in %.0f s", scale.workers, time.monotonic() - began)
