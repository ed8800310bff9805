"""What cannot be placed is refused soon, unless nodes may come; a request to an autoscaler ends with its asker."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import pytest

from rayd.errors import Refused
from tests.support.grounds import ROOT, Ground, Nodes

pytestmark = pytest.mark.ray


def test_nodes_that_may_come_are_waited_for(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayd.fleet import cluster

    requests: list[list[dict[str, float]]] = []
    withdrawn: list[Any] = []
    nodes = [{"CPU": 4.0}]
    monkeypatch.setattr(cluster, "nodes", lambda selector: list(nodes))
    monkeypatch.setattr(cluster, "PLACED_SECONDS", 0)

    def launch(bundles: list[dict[str, float]], bundle_label_selector: Any) -> str:
        requests.append(bundles)
        nodes.append({"CPU": 8.0, "GPU": 2.0})
        return f"request {len(requests)}"

    monkeypatch.setattr(cluster, "placement_group", launch)
    monkeypatch.setattr(cluster, "remove_placement_group", withdrawn.append)
    with pytest.raises(Refused, match=r"one worker needs GPU 1, 2 asked for.*scale\.wait=900 waits"):
        cluster.require({"GPU": 1.0}, 2)
    assert requests == []
    cluster.require({"GPU": 1.0}, 2, wait=60)
    assert requests == [[{"GPU": 1.0}] * 2] and withdrawn == ["request 1"]
    began = time.monotonic()
    with pytest.raises(Refused, match=r"none came within scale\.wait=0\.5 s"):
        cluster.require({"GPU": 8.0}, 1, wait=0.5)
    assert time.monotonic() - began < 10 and withdrawn == ["request 1", "request 2"]


def test_labels_are_matched_as_ray_matches_them(ray_local: None) -> None:
    """The refusal's own reading of a selector agrees with Ray's placement: what it lets through runs, what not does not."""
    import ray
    from ray.exceptions import RayError

    from rayd.fleet import cluster
    from rayd.fleet.policy import matches

    node = ray.nodes()[0]  # type: ignore[no-untyped-call]
    here, other, third = node["NodeID"], "ab" * 28, "cd" * 28
    selectors = {
        here: True, other: False, f"!{other}": True, f"!{here}": False, f"in({here},{other})": True,
        f"in({other},{third})": False, f"!in({here})": False, f"!in({other},{third})": True,
    }  # fmt: skip
    remote: Any = ray.remote(num_cpus=0)(lambda: 1)
    for text, fits in selectors.items():
        selector = {"ray.io/node-id": text}
        assert matches(node["Labels"], selector) is fits, text
        ran = False
        with contextlib.suppress(RayError):  # Ray waits for a node, or says that this one does not exist
            ran = ray.get(remote.options(label_selector=selector).remote(), timeout=60 if fits else 1) == 1
        assert ran is fits, text
    assert matches({}, {"spot": "!yes"}) and not matches({}, {"spot": "yes"})
    cluster.require({"CPU": 1.0}, 1, selector={"ray.io/node-id": here})
    with pytest.raises(Refused, match=r"1 asked for; the 0 nodes with market=spot have none"):
        cluster.require({"CPU": 1.0}, 1, selector={"market": "spot"})
    with pytest.raises(Refused, match=r"scale\.labels"):
        cluster.require({"CPU": 1.0}, 1, selector={"market": "-spot-"})


def test_each_stage_has_its_own_nodes() -> None:
    from rayd.config.scale import ScaleConfig
    from rayd.schema import parse

    labels = {"experts": {"ray.io/market-type": "spot"}, "all": {"ray.io/market-type": "on-demand"}}
    scale = parse(ScaleConfig, {"labels": labels})
    assert scale.selector("experts") == labels["experts"] and scale.selector("distill") == labels["all"]
    assert ScaleConfig().selector("experts") == {}
    with pytest.raises(Refused, match=r"scale\.labels=expert: allowed is prepare \| experts"):
        parse(ScaleConfig, {"labels": {"expert": {}}})


@pytest.mark.slow
def test_seven_kinds_of_the_impossible_are_refused_by_every_verb() -> None:
    """Asked all at once of three nodes with one core each."""
    with Ground.made() as ground:
        nodes = Nodes(ground, (1, 1, 1))
        env = {"RAY_ADDRESS": nodes.address, "PYTHONPATH": str(ROOT)}
        code, said = ground.run([sys.executable, "-m", "tests.support.refusals", str(ground.folder / "out")], env)
        lines = [line for line in said.splitlines() if line.startswith("ANSWERS ")]
        assert code == 0 and lines, said[-3000:]
    answers: dict[str, tuple[float, str]] = json.loads(lines[0].removeprefix("ANSWERS "))
    assert len(answers) == 7 * 7 - 3 - 2
    others = {asked: text for asked, (_, text) in answers.items() if not text.startswith("scale: one ")}
    assert others == {}
    late = {asked: seconds for asked, (seconds, _) in answers.items() if seconds >= 10}
    assert late == {}


def standing() -> set[str]:
    """States of all placement groups that are not over, asked of Ray itself."""
    from ray.util import placement_group_table

    return {group["state"] for group in placement_group_table().values()} - {"REMOVED"}


def test_after_a_refusal_no_request_stands(ray_local: None) -> None:
    from rayd.fleet import cluster

    with pytest.raises(Refused, match="none came"):
        cluster.require({"CPU": 1000.0}, 1, wait=9)
    assert standing() == set()


def test_workers_of_other_versions_are_refused_and_builds_of_torch_are_not() -> None:
    from rayd.fleet.cluster import same_versions, versions

    ours = versions()
    assert "+" not in ours["torch"]
    same_versions(dict(ours), ours, "actor 1 on node-7")
    with pytest.raises(Refused, match=r"actor 1 on node-7.*rayd 0\.0\.1 there.*use one image for all nodes"):
        same_versions({**ours, "rayd": "0.0.1"}, ours, "actor 1 on node-7")
