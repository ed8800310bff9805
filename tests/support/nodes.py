"""A cluster of several raylets on this machine, held by this process and commanded over its standard input.

    python nodes.py FOLDER CPUS...      one raylet each, the first is the head; the first line out: address, all nodes' ids
    kill N | add CPUS | quit            answered with a line each

Every raylet is a child of this process, with its own folder; they end with it, and nothing else here is touched.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

FAST = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
}
STORE = 80 * 2**20


def main(folder: str, *cpus: str) -> None:
    common: dict[str, Any] = {"object_store_memory": STORE, "include_dashboard": False}
    head = {**common, "num_cpus": int(cpus[0]), "temp_dir": str(Path(folder) / "ray"), "_system_config": FAST}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
    nodes: list[Any] = [cluster.head_node]
    nodes += [cluster.add_node(num_cpus=int(one), object_store_memory=STORE) for one in cpus[1:]]
    say(f"{cluster.address} {' '.join(node.node_id for node in nodes)}")
    for line in sys.stdin:
        verb, *words = line.split()
        if verb == "kill":
            cluster.remove_node(nodes[int(words[0])], allow_graceful=False)
        elif verb == "add":
            nodes.append(cluster.add_node(num_cpus=int(words[0]), object_store_memory=STORE))
        else:
            break
        say("done")
    cluster.shutdown()


def say(word: str) -> None:
    sys.stdout.write(f"RAYD {word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
