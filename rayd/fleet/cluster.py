"""Joining Ray: a local one (laptop), or the cluster that the job was submitted to. What cannot be placed is refused."""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray._private.label_utils import validate_label_selector
from ray._private.utils import read_ray_address
from ray.exceptions import AuthenticationError
from ray.util.placement_group import placement_group, remove_placement_group

from rayd.config.scale import ScaleConfig
from rayd.errors import Refused, refuse
from rayd.fleet.policy import Resources, capacity, matches, shortfall
from rayd.machine import __version__
from rayd.store import Store

log = logging.getLogger(__name__)

PLACED_SECONDS = 7.0
"""How long nodes may take to show up before a placement is called impossible."""
CONNECT_SECONDS = 5.0
OBJECT_STORE = 150 * 2**20
"""Bytes for scale=laptop: rayd sends only plans and counts through the object store."""


def start(scale: ScaleConfig) -> None:
    """Connect to Ray as the scale says; does nothing where this process is connected already."""
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if scale.name == "laptop":
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves our workers beside any other program
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # its 30 s are short on a busy machine
        ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        return
    if scale.name != "cluster":
        raise refuse("scale", scale.name, "laptop | cluster for work on Ray")
    address = os.environ.get("RAY_ADDRESS") or read_ray_address() or ""
    refusal = Refused(
        f"scale=cluster: no Ray cluster answers {'at ' + address if address else 'here'}; submit this command with "
        "`ray job submit -- ...`, set RAY_ADDRESS, or use scale=laptop"
    )
    if not listens(address):
        raise refusal
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise refusal from error
    except AuthenticationError as error:
        do = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token to the cluster's own"
        raise Refused(f"scale=cluster: the cluster at {address} does not take this token; {do}") from error


def listens(address: str) -> bool:
    """Whether something listens at HOST:PORT; Ray would wait for minutes at the address of a cluster that has ended."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return "://" in address
    try:
        with socket.create_connection((host.rpartition("/")[2].strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def stop() -> None:
    """Leave the cluster; a local one that `start` has started ends."""
    ray.shutdown()


def bundle(scale: ScaleConfig) -> dict[str, float]:
    """The resources of one actor, worker or task. The config alone decides them, not the driver's machine."""
    need = {"CPU": float(scale.cpus)}
    if scale.gpus > 0:
        need["GPU"] = float(scale.gpus)
    return need


def nodes(selector: Mapping[str, str] | None = None) -> list[Resources]:
    """The total resources of every living node whose labels match, ordered by node id."""
    alive = [
        node
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and matches(node["Labels"], selector or {})
    ]
    return [node["Resources"] for node in sorted(alive, key=lambda node: str(node["NodeID"]))]


def require(
    need: Mapping[str, float],
    count: int,
    what: str = "worker",
    wait: float = 0.0,
    selector: Mapping[str, str] | None = None,
) -> None:
    """Refuse within seconds what this cluster cannot place. With `wait`, its autoscaler is asked and has so long.

    The request is a placement group, which is pending work of this driver: it is withdrawn below in any case, and by
    Ray itself where the driver is killed.
    """
    began, request, selector = time.monotonic(), None, dict(selector or {})
    if wrong := validate_label_selector(selector):
        raise Refused(f"scale.labels: {wrong}")
    where = f" with {', '.join(f'{key}={value}' for key, value in selector.items())}" if selector else ""
    try:
        while why := shortfall(need, count, nodes(selector), what, where):
            if wait > 0 and request is None:
                log.info("waiting up to %.0f s for nodes: %s", wait, why)
                labels = [selector] * count if selector else None
                request = placement_group([dict(need)] * count, bundle_label_selector=labels)
            if time.monotonic() - began > max(wait, PLACED_SECONDS):
                do = "Lower scale.gpus, scale.cpus, scale.actors or scale.workers, or add nodes"
                hint = (
                    f"none came within scale.wait={wait:g} s"
                    if wait > 0
                    else "scale.wait=900 waits for an autoscaler's"
                )
                raise Refused(f"scale: {why}. {do} ({hint})")
            time.sleep(0.5)
    finally:
        if request is not None:
            remove_placement_group(request)


def room(need: Mapping[str, float], selector: Mapping[str, str] | None = None) -> int:
    """How many such bundles the cluster holds when nothing runs on it."""
    return capacity(need, nodes(selector))


def draining() -> set[str]:
    """Ids of the nodes that have been told to stop."""
    return set(ray._private.state.state.get_draining_nodes())


def versions() -> dict[str, str]:
    """What must be equal everywhere for the same bytes. Builds of torch for CPU and CUDA share their Python code."""
    return {"rayd": __version__, "torch": torch.__version__.partition("+")[0], "python": platform.python_version()}


def same_versions(theirs: Mapping[str, str], ours: Mapping[str, str], where: str) -> None:
    """Refuse a worker of other versions than the driver's."""
    pairs = [f"{name} {theirs.get(name)} there, {ours[name]} here" for name in ours if theirs.get(name) != ours[name]]
    if pairs:
        raise Refused(f"{where}: other versions than the driver's ({'; '.join(pairs)}); use one image for all nodes")


def train_storage(out: str) -> str:
    """The folder for the state that Ray Train and Tune write."""
    return Store(out).sub("ray").uri


NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""Ray hides no GPU from work that asked for none."""


def options(need: Mapping[str, float], selector: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A bundle as the options of an actor or task; without a GPU of its own it sees none."""
    gpus = need.get("GPU", 0.0)
    hidden = not gpus and any(node.get("GPU", 0) for node in nodes())
    environment = {"runtime_env": {"env_vars": NO_GPU}} if hidden else {}
    labels = {"label_selector": dict(selector)} if selector else {}
    return {"num_cpus": need.get("CPU", 0.0), "num_gpus": gpus, **environment, **labels}


def task_options(need: Mapping[str, float], selector: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """Of a task: on a GPU its process ends with it. CUDA stays with the GPU that a process saw first, whichever Ray
    assigns to the next task, and keeps its memory."""
    return {**options(need, selector), **({"max_calls": 1} if need.get("GPU") else {}), **more}
