"""Nodes that are not there yet: what the autoscaler may still add. A cluster that stands at zero is not a small one."""

from __future__ import annotations

from collections import Counter

import ray
from ray._private.state import state

from rayd.fleet.policy import Resources

GROUP = "ray.io/node-group"
"""The label that a node carries if an autoscaler launched it."""
MANY = 1000
"""Nodes of a group without a limit."""


def promised() -> list[Resources]:
    """The resources of every node that may still come; none where no autoscaler has said what it manages."""
    config = state.get_cluster_config()
    if config is None:
        return []
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    here = Counter(node.get("Labels", {}).get(GROUP, "") for node in alive)
    coming: list[Resources] = []
    for group in config.node_group_configs:
        most = MANY if group.max_count < 0 else group.max_count
        resources = {name: float(amount) for name, amount in group.resources.items()}
        coming += [resources] * max(0, most - here[group.name])
    return coming
