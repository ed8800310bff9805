"""What an autoscaler promises counts as a place, though no node is there yet."""

from __future__ import annotations

import pytest

from rayd.errors import Refused
from rayd.fleet.policy import capacity

pytestmark = pytest.mark.ray


def test_promised_nodes_count(ray_local: None) -> None:
    import ray
    from ray.core.generated import autoscaler_pb2
    from ray.experimental import internal_kv

    from rayd.fleet import cluster
    from rayd.fleet.growth import promised

    assert promised() == []
    config = autoscaler_pb2.ClusterConfig()
    for name, resources, most in (("gpu", {"CPU": 8, "GPU": 1}, 3), ("cpu", {"CPU": 16}, 0)):
        group = config.node_group_configs.add(name=name, min_count=0, max_count=most)
        for key, amount in resources.items():
            group.resources[key] = amount
    key = ray._raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode()
    space = ray._raylet.GCS_AUTOSCALER_STATE_NAMESPACE.encode()
    internal_kv._internal_kv_put(key, config.SerializeToString(), namespace=space)
    try:
        assert promised() == [{"CPU": 8.0, "GPU": 1.0}] * 3
        assert capacity({"GPU": 1.0, "CPU": 4.0}, promised()) == 3
        assert cluster.room({"GPU": 1.0}) == 3 and cluster.awaited({"GPU": 1.0}, 3)
        cluster.require({"GPU": 1.0}, 3)
        with pytest.raises(Refused, match="one worker needs GPU 1, 4 asked for"):
            cluster.require({"GPU": 1.0}, 4, seconds=0)
    finally:
        internal_kv._internal_kv_del(key, namespace=space)
    assert promised() == []
