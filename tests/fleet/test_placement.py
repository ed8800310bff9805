"""What cannot be placed is refused soon, unless somebody said that nodes may come."""

from __future__ import annotations

import time

import pytest

from rayd.errors import Refused

pytestmark = pytest.mark.ray


def test_nodes_that_may_come_are_waited_for(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayd.fleet import cluster

    asked: list[list[dict[str, float]]] = []
    standing = [{"CPU": 4.0}]
    monkeypatch.setattr(cluster, "nodes", lambda: list(standing))

    def launch(bundles: list[dict[str, float]]) -> None:
        asked.append(bundles)
        standing.append({"CPU": 8.0, "GPU": 2.0})

    monkeypatch.setattr(cluster, "request_resources", launch)
    with pytest.raises(Refused, match=r"one worker needs GPU 1, 2 asked for.*scale\.wait=900 waits"):
        cluster.require({"GPU": 1.0}, 2, seconds=0)
    assert asked == []
    cluster.require({"GPU": 1.0}, 2, wait=60, seconds=0)
    assert asked == [[{"GPU": 1.0}] * 2, []], "asked once, withdrawn when they are there"
    began = time.monotonic()
    with pytest.raises(Refused, match=r"none came within scale\.wait=0\.5 s"):
        cluster.require({"GPU": 8.0}, 1, wait=0.5, seconds=0)
    assert time.monotonic() - began < 10
