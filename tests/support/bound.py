"""A task that tells which GPU its process was bound to first, as CUDA is, and which it was given now.

As a program: 24 tasks on two GPUs that only Ray knows of, and others that come and go; one JSON line of what each saw.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

FIRST: list[str | None] = []


def look(number: int) -> dict[str, Any]:
    import ray

    FIRST.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
    time.sleep(0.02 * (number % 3))
    given = [str(one) for one in ray.get_gpu_ids()]
    return {"first": FIRST[0], "sees": os.environ.get("CUDA_VISIBLE_DEVICES"), "given": given, "pid": os.getpid()}


def main() -> None:
    import ray

    from rayd.fleet import cluster

    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 100 * 2**20}
    ray.init(address="local", num_cpus=4, num_gpus=2, **quiet)
    kinds = {"gpu": {"CPU": 1.0, "GPU": 1.0}, "half": {"CPU": 1.0, "GPU": 0.5}, "cpu": {"CPU": 1.0}}
    tasks: dict[str, Any] = {kind: ray.remote(**cluster.task_options(need))(look) for kind, need in kinds.items()}
    order = [*(["gpu", "half", "gpu", "cpu"] * 6), *(["gpu"] * 12)]
    refs = [tasks[kind].remote(number) for number, kind in enumerate(order)]
    print(json.dumps([{"kind": kind, **seen} for kind, seen in zip(order, ray.get(refs, timeout=500), strict=True)]))


if __name__ == "__main__":
    main()
