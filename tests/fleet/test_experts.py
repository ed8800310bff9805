from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

import rayd.run.experts
from rayd.errors import Failed, Refused
from rayd.experts.buffer import verify
from rayd.fleet.policy import Loss, after_loss, capacity, copies, pool_size, shortfall
from rayd.run.experts import ExpertPlan, build
from rayd.run.progress import Built, Progress
from tests.support.hashes import hashes
from tests.support.loopback import s3_server
from tests.support.runs import digits_run

EXPERTS = 6

# ---- decisions, without a cluster ---------------------------------------------------------------------------------------


def test_what_a_node_holds() -> None:
    assert copies({"CPU": 1}, {"CPU": 4}) == 4
    assert copies({"CPU": 1, "GPU": 0.25}, {"CPU": 16, "GPU": 2}) == 8
    assert copies({"CPU": 1, "GPU": 0.4}, {"CPU": 16, "GPU": 2}) == 4
    assert copies({"CPU": 2, "GPU": 1}, {"CPU": 4}) == 0
    assert capacity({"CPU": 2}, [{"CPU": 3}, {"CPU": 5}]) == 3


def test_what_is_missing_is_said() -> None:
    nodes = [{"CPU": 2.0}, {"CPU": 4.0}]
    assert shortfall({"CPU": 1}, 6, nodes) == ""
    text = shortfall({"CPU": 1, "GPU": 1}, 2, nodes, "expert actor")
    assert text == (
        "one expert actor needs CPU 1, GPU 1, 2 asked for; the 2 nodes have CPU 2, GPU 0; CPU 4, GPU 0: "
        "no node has enough GPU"
    )
    assert shortfall({"CPU": 4}, 2, nodes).endswith("only 1 of 2 fit at once")


def test_the_pool_is_as_large_as_asked_or_as_fits() -> None:
    nodes = [{"CPU": 4.0}]
    assert pool_size(0, 100, {"CPU": 1}, nodes) == 4
    assert pool_size(2, 100, {"CPU": 1}, nodes) == 2
    assert pool_size(0, 3, {"CPU": 1}, nodes) == 3


def test_what_is_tried_again() -> None:
    died = after_loss("experts-00001", Loss.DIED, attempts=1, limit=2)
    assert died.again and died.replace and died.reason.endswith("attempt 2 of 3")
    assert not after_loss("experts-00001", Loss.DIED, attempts=3, limit=2).again
    flaky = after_loss("experts-00001", Loss.STORAGE, attempts=1, limit=2, detail="timeout")
    assert flaky.again and not flaky.replace and "(timeout)" in flaky.reason
    assert not after_loss("experts-00001", Loss.BUG, attempts=1, limit=2).again


# ---- on Ray -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bytes of the same run made inline."""
    out = tmp_path_factory.mktemp("inline")
    run = digits_run(out, experts=EXPERTS)
    list(build(ExpertPlan.open(run)))
    return hashes(run.experts_at)


def laptop(**more: Any) -> dict[str, Any]:
    return {"name": "laptop", "timeout": 120.0, **more}


@pytest.mark.ray
@pytest.mark.parametrize("actors", [1, 2, 4])
def test_any_number_of_actors_leaves_the_same_bytes(
    ray_local: None, tmp_path: Path, undisturbed: dict[str, str], actors: int
) -> None:
    from rayd.fleet import experts as fleet

    run = digits_run(tmp_path, experts=EXPERTS, changes={"scale": laptop(actors=actors)})
    *_, progress = fleet.build(ExpertPlan.open(run))
    assert progress.done == EXPERTS and progress.retried == 0
    assert hashes(run.experts_at) == undisturbed
    *_, again = fleet.build(ExpertPlan.open(run))
    assert (again.done, again.skipped) == (0, EXPERTS)


@pytest.mark.ray
def test_what_cannot_be_placed_is_refused_at_once(ray_local: None, tmp_path: Path) -> None:
    from rayd.fleet import experts as fleet

    plan = ExpertPlan.open(digits_run(tmp_path, changes={"scale": laptop(gpus=1.0)}))
    began = time.monotonic()
    with pytest.raises(Refused, match=r"one expert actor needs CPU 1, GPU 1.*no node has enough GPU.*or add nodes"):
        list(fleet.build(plan))
    assert time.monotonic() - began < 12


@pytest.mark.ray
def test_divergence_is_recorded_by_the_fleet_too(ray_local: None, tmp_path: Path) -> None:
    from rayd.fleet import experts as fleet

    run = digits_run(tmp_path, experts=2, norm="none", lr=1e30, changes={"scale": laptop(actors=1)})
    with pytest.raises(Failed, match="2 of 2 units diverged"):
        list(fleet.build(ExpertPlan.open(run)))
    assert (tmp_path / "experts" / "experts-00000.failed.json").exists()


@pytest.mark.ray
def test_a_full_disk_ends_the_run_with_its_message(ray_local: None, tmp_path: Path) -> None:
    """Met in an actor, told by the driver: not tried again."""
    from rayd.fleet import experts as fleet

    class Full(fleet.ExpertActor):
        def build(self, number: int) -> Any:
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
            return super().build(number)

    run = digits_run(tmp_path, experts=2, changes={"scale": laptop(actors=1)})
    with pytest.raises(Failed, match=r"experts-00000\S+: no room left.*run the same command again"):
        list(fleet.build(ExpertPlan.open(run), actor_class=Full))
    assert verify(run.experts_at) == []


def driver(out: Path | str, **keys: Any) -> subprocess.Popen[str]:
    """The driver of a run in a process of its own, with a Ray of its own."""
    script = Path(__file__).parents[1] / "support" / "runs.py"
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2])}
    return subprocess.Popen(
        [sys.executable, str(script), str(out), json.dumps(keys)], stdout=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.ray
def test_a_killed_driver_is_resubmitted(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    keys = {"experts": EXPERTS, "changes": {"scale": laptop(actors=2, cpus=0.5)}}
    first = driver(tmp_path, **keys)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("shards 2/"):
            break
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=30)
    committed = {path: path.stat().st_mtime_ns for path in (tmp_path / "experts").glob("experts-*.json")}
    assert len(committed) >= 2
    second = driver(tmp_path, **keys)
    out, _ = second.communicate(timeout=240)
    assert second.returncode == 0, out
    assert hashes(tmp_path / "experts") == undisturbed
    assert all(path.stat().st_mtime_ns == when for path, when in committed.items())


# ---- the same on an object store ----------------------------------------------------------------------------------------


@pytest.fixture
def bucket() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("actors", [1, 2, 4])
def test_an_object_store_gets_the_same_bytes(
    bucket: str, tmp_path: Path, undisturbed: dict[str, str], actors: int
) -> None:
    changes = {"scale": laptop(actors=actors, cpus=0.25), "out": str(tmp_path)}
    first = driver(bucket, experts=EXPERTS, changes=changes)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("shards 2/"):
            break
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=30)
    second = driver(bucket, experts=EXPERTS, changes=changes)
    out, _ = second.communicate(timeout=240)
    assert second.returncode == 0, out
    assert hashes(bucket) == undisturbed


# ---- many actors, simulated ------------------------------------------------------------------------------------------


class Simulated:
    """Stands for Ray where the dispatcher asks it: 64 places, eight of them on a node on which every actor dies at its
    start. A free place on that node is taken first, as by a scheduler that packs."""

    def __init__(self, fingerprint: Any, bad: int, good: int) -> None:
        self.fingerprint, self.free = fingerprint, {"bad": bad, "good": good}
        self.starts = {"bad": 0, "good": 0}
        self.answers: dict[int, Any] = {}
        self.ready: deque[int] = deque()

    def remote(self, **options: Any) -> Any:
        return lambda cls: SimpleNamespace(remote=self._actor)

    def _actor(self, plain: Any, last_epoch: Any, pulse: Any, name: str) -> Any:
        node = next(node for node in ("bad", "good") if self.free[node])
        self.free[node] -= 1
        self.starts[node] += 1
        answer = {"pid": self.starts["good"], "host": node, "node": node, "fingerprint": self.fingerprint}
        ready = ActorDiedError() if node == "bad" else answer
        return SimpleNamespace(
            node=node,
            ready=SimpleNamespace(remote=lambda: self._later(ready)),
            build=SimpleNamespace(remote=lambda number: self._later(Built(f"unit {number}", 1, 1, 0.1))),
        )

    def _later(self, answer: Any) -> int:
        self.answers[len(self.answers)] = answer
        self.ready.append(len(self.answers) - 1)
        return len(self.answers) - 1

    def wait(self, refs: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        done = next((ref for ref in self.ready if ref in set(refs)), None)
        if done is None:
            return [], refs
        self.ready.remove(done)
        return [done], []

    def get(self, ref: int, timeout: float) -> Any:
        answer = self.answers[ref]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor: Any) -> None:
        self.free[actor.node] += 1


def test_sixty_four_actors_of_which_eight_die_at_their_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on with the others: every unit of 200 is built once, from one load of the dataset."""
    from rayd.fleet import experts as fleet

    loads: list[Any] = []
    whole = rayd.run.experts.load_data
    monkeypatch.setattr("rayd.run.experts.load_data", lambda config: loads.append(config) or whole(config))
    changes = {"scale": {"name": "laptop", "actors": 64, "max_failures": 3}}
    plan = ExpertPlan.open(digits_run(tmp_path, experts=200, changes=changes))
    fake = Simulated(plan.writer.fingerprint, bad=8, good=56)
    monkeypatch.setattr(fleet, "ray", fake)
    monkeypatch.setattr(fleet.cluster, "nodes", lambda selector=None: [{"CPU": 56.0}, {"CPU": 8.0}])
    recorded: list[str] = []
    watch: Any = SimpleNamespace(
        pulse=None, notes={}, leaving=set(), notices=set, forget=lambda group: None, why=lambda group, otherwise: otherwise,
        record=lambda kind, text, **more: recorded.append(text),
    )  # fmt: skip
    progress = Progress(total=200, skipped=0, planned=200)
    most = 0
    for now in fleet.Dispatcher(plan, None, list(plan.units), progress, watch).run():
        most = max(most, now.actors)
    assert (progress.done, progress.experts, progress.retried) == (200, 200, 0)
    assert len(loads) == 1
    assert most == 56 and fake.starts["good"] == 56
    assert 8 <= fake.starts["bad"] <= 8 * 4, "every place is tried max_failures + 1 times at most"
    assert any("the run goes on with" in text for text in recorded)
    assert fake.free == {"bad": 8, "good": 56}, "every actor is ended"
