"""What an autoscaler promises counts as a place, though no node is there yet."""

from __future__ import annotations

import pytest

from rayd.fleet.policy import capacity

pytestmark = pytest.mark.ray


def test_promised_nodes_count(ray_local: None) -> None:
    import ray
    from ray.core.generated import autoscaler_pb2
    from ray.experimental import internal_kv

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
    finally:
        internal_kv._internal_kv_del(key, namespace=space)
    assert promised() == []
