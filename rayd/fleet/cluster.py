"""Joining Ray: one of this process (laptop) or the cluster the job was submitted to; the impossible is refused."""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch
from ray._private.utils import read_ray_address
from ray.autoscaler.sdk import request_resources

from rayd.config import ScaleConfig
from rayd.errors import Refused, refuse
from rayd.fleet.policy import Resources, capacity, shortfall
from rayd.store import Store
from rayd.version import VERSION

log = logging.getLogger(__name__)

PLACED_SECONDS = 8.0
"""How long nodes may take to show up before a placement is called impossible."""
CONNECT_SECONDS = 5.0
OBJECT_STORE = 150 * 2**20
"""Bytes for scale=laptop: nothing of ours travels through the object store but plans and counts."""


def start(scale: ScaleConfig) -> None:
    """Ray as the scale says; nothing to do where this process is connected already."""
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
    nobody = Refused(
        f"scale=cluster: no Ray cluster answers {'at ' + address if address else 'here'}; submit this command with "
        "`ray job submit -- ...`, set RAY_ADDRESS, or use scale=laptop"
    )
    if not listens(address):
        raise nobody
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise nobody from error


def listens(address: str) -> bool:
    """Whether anybody is at HOST:PORT; Ray would wait for minutes at the address that a dead cluster left behind."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return "://" in address
    try:
        with socket.create_connection((host.rpartition("/")[2].strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def stop() -> None:
    """Leave the cluster; one started by `start` ends."""
    ray.shutdown()


def bundle(scale: ScaleConfig) -> dict[str, float]:
    """What one actor, worker or task takes. Decided by the config alone, never by what the driver's machine has."""
    need = {"CPU": float(scale.cpus)}
    if scale.gpus > 0:
        need["GPU"] = float(scale.gpus)
    return need


def nodes() -> list[Resources]:
    """The total resources of every living node, in an order of their own."""
    alive = [
        node
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    return [node["Resources"] for node in sorted(alive, key=lambda node: str(node["NodeID"]))]


def require(
    need: Mapping[str, float],
    count: int,
    what: str = "worker",
    wait: float = 0.0,
    seconds: float = PLACED_SECONDS,
) -> None:
    """Refuse, within seconds, what this cluster cannot place. With `wait`, its autoscaler is asked and has so long."""
    began, asked = time.monotonic(), False
    while why := shortfall(need, count, nodes(), what):
        if wait > 0 and not asked:
            log.info("waiting up to %.0f s for nodes: %s", wait, why)
            request_resources(bundles=[dict(need)] * count)
            asked = True
        if time.monotonic() - began > max(wait, seconds):
            do = "Lower scale.gpus, scale.cpus, scale.actors or scale.workers, or add nodes"
            more = f"none came within scale.wait={wait:g} s" if wait > 0 else "scale.wait=900 waits for an autoscaler's"
            raise Refused(f"scale: {why}. {do} ({more})")
        time.sleep(0.5)
    if asked:
        request_resources(bundles=[])


def room(need: Mapping[str, float]) -> int:
    """How many such bundles the cluster holds when it is empty."""
    return capacity(need, nodes())


def versions() -> dict[str, str]:
    """What must be equal everywhere for the same bytes."""
    return {"rayd": VERSION, "torch": torch.__version__, "python": platform.python_version()}


def same_versions(theirs: Mapping[str, str], where: str) -> None:
    ours = versions()
    if dict(theirs) != ours:
        wrong = [
            f"{name} {theirs.get(name)} there, {ours[name]} here" for name in ours if theirs.get(name) != ours[name]
        ]
        raise Refused(f"{where}: other versions than the driver's ({'; '.join(wrong)}); use one image for all nodes")


def train_storage(out: str) -> str:
    """Where Ray Train and Tune may keep what they insist on keeping."""
    return Store(out).sub("ray").uri


def options(need: Mapping[str, float]) -> dict[str, float]:
    """A bundle as the options of an actor or task."""
    return {"num_cpus": need.get("CPU", 0.0), "num_gpus": need.get("GPU", 0.0)}


__all__: Sequence[str] = (
    "bundle",
    "nodes",
    "options",
    "require",
    "room",
    "same_versions",
    "start",
    "stop",
    "train_storage",
    "versions",
)
