"""The doctor's questions where the work will run: a task on every node, and an all-reduce between real workers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import ray
import ray.train
import torch.distributed as dist
from ray.exceptions import GetTimeoutError, RayError
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayd.config import Run
from rayd.errors import Failed
from rayd.fleet import cluster
from rayd.fleet.policy import copies
from rayd.schema import parse, to_dict
from rayd.store import Store
from rayd.studies.doctor import Facts, examine, reduced

ANSWER = "doctor.json"
PATIENCE = 120.0
"""Seconds that any one answer may take."""


def _examine(plain: Mapping[str, Any]) -> dict[str, Any]:
    return examine(parse(Run, plain))


def on_every_node(run: Run) -> list[Facts]:
    """What each node that can hold a worker says of itself."""
    cluster.start(run.scale)
    need = cluster.bundle(run.scale)
    cluster.require(need, 1, "worker", run.scale.wait)
    refs = [ray.remote(**cluster.task_options(need, **where))(_examine).remote(to_dict(run)) for where in _places(need)]
    try:
        return list(ray.get(refs, timeout=PATIENCE))
    except GetTimeoutError as error:
        raise Failed(f"{len(refs)} nodes: not all answered within {PATIENCE:g} s; see ray status") from error


def _places(need: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"] and copies(need, node["Resources"]):
            yield {
                "max_retries": 0,
                "max_calls": 1,
                "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            }


def _reduce(config: Mapping[str, Any]) -> None:
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    answer = reduced(rank, size, get_device())
    if rank == 0:  # Train hands a driver no metrics without a checkpoint
        Store(config["out"]).write_json(ANSWER, {**answer, "backend": dist.get_backend()})


def between_workers(run: Run) -> Facts | None:
    """An all-reduce over the backend that a distillation would use: between its workers, or two where it has one."""
    need = cluster.bundle(run.scale)
    size = max(run.scale.workers, min(2, cluster.room(need)))
    if size < 2:
        return None
    store = Store(run.out)
    trainer = TorchTrainer(
        _reduce,
        train_loop_config={"out": run.out},
        scaling_config=ScalingConfig(num_workers=size, use_gpu=run.scale.gpus > 0, resources_per_worker=need),
        torch_config=TorchConfig(timeout_s=int(PATIENCE)),
        run_config=RunConfig(name=f"doctor-{uuid.uuid4().hex[:8]}", storage_path=cluster.train_storage(run.out)),
    )
    try:
        trainer.fit()
        return store.facts(ANSWER) or {"error": "no answer"}
    except (TrainingFailedError, RayError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return {"error": lines[-1][:160] if lines else type(error).__name__}
    finally:
        store.delete(ANSWER)
