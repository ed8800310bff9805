"""Pods that are stopped: the hook of the manifest, typed where a pod's would be, drains the node in time.

A pod is a node with process ids of its own, which is how Ray and the hook tell one pod's processes from another's; when its
first process ends, all the others are killed.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.grounds import PATIENCE, ROOT, Ground, Head, descendants, until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

ALONE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
TINY = (
    "data=digits", "data.limit=256", "net.depth=2", "net.width=8", "expert=quick", "expert.experts=4", "expert.epochs=6",
    "method=mtt", "method.objective.last=2", "method.objective.inner_steps=4", "method.objective.batch=20",
    "method.objective.items=2", "method.compiled=false", "budget.ipc=2",
)  # fmt: skip
THERE = ("scale=cluster", "scale.cpus=1", "scale.gpus=0", "scale.threads=1", "scale.max_failures=0", "scale.wait=120")


def hook() -> list[str]:
    """What the manifest makes Kubernetes type in a pod before it stops it."""
    (pod,) = [
        group["template"]["spec"]
        for group in yaml.safe_load((ROOT / "infra/kuberay/job.yaml").read_text())["spec"]["rayClusterSpec"][
            "workerGroupSpecs"
        ]
        if group["groupName"] == "gpu"
    ]
    name, *words = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert name == "rayd-drain" and f"infra/drain.py /usr/local/bin/{name}" in (ROOT / "infra/Dockerfile").read_text()
    return [sys.executable, str(ROOT / "infra" / "drain.py"), *words]


class Pod:
    """A worker node; `stop` does to it what Kubernetes does."""

    def __init__(self, ground: Ground, head: Head, name: str) -> None:
        self.said, self.stopping = ground.folder / f"{name}.log", ground.folder / f"{name}.stop"
        words = ["ray", "start", "--block", f"--address={head.address}", "--num-cpus=1", "--disable-usage-stats"]
        words += [f"--object-store-memory={80 * 2**20}"]
        wait = f"until [ -e {self.stopping} ]; do sleep 0.2; done"
        script = f"{shlex.join(words)} & {wait}; {shlex.join(hook())}; echo HOOK $?"
        env = {**ground.env, "RAY_ADDRESS": head.address, "RAY_raylet_start_wait_time_s": "120"}
        with open(self.said, "w") as log:
            self.child = ground.start([*ALONE, "sh", "-c", script], env=env, stdout=log, stderr=subprocess.STDOUT)
        until(lambda: "Ray runtime started" in self.said.read_text())  # two at once would choose the same socket

    @property
    def node(self) -> str:
        """Ray's id of the node; empty until it has one."""
        found = [re.search(r"--node_id=(\w+)", title) for _, title in descendants(self.child.pid)]
        return next((one[1] for one in found if one), "")

    def stop(self) -> float:
        """Seconds that the hook took."""
        began = time.monotonic()
        self.stopping.touch()
        self.child.wait(PATIENCE)
        assert self.said.read_text().endswith("HOOK 0\n"), self.said.read_text()[-3000:]
        return time.monotonic() - began


def events(out: Path) -> list[dict[str, Any]]:
    path = out / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def stopped_at_work(
    verb: str, more: tuple[str, ...], ready: Callable[[Path, str], bool]
) -> tuple[float, str, list[int]]:
    """A run on a head and two pods, one of which is stopped once it has work and the run is `ready`. Nothing may fail, and
    nothing begins on the pod any more. Seconds of the hook, the job's log, the steps that were taken."""
    with Ground.made() as ground:
        del ground.env["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"]
        able = ground.run([*ALONE, "true"])
        if able[0] != 0:
            pytest.skip(f"no process ids of one's own here: {able[1]}")
        head, out = Head(ground, cpus=1), ground.folder / "out"
        until(head.ready, every=1.0)
        pods = [Pod(ground, head, "one"), Pod(ground, head, "two")]
        if verb == "distill":
            code, said = ground.run(["python", "-m", "jobs.experts", *TINY, "scale=inline", f"out={out}"])
            assert code == 0, said[-3000:]
        words, log = ["python", "-m", f"jobs.{verb}", *TINY, *THERE, f"out={out}", *more], ground.folder / "job.log"
        with open(log, "w") as file:
            env = {**ground.env, "RAY_ADDRESS": head.address}
            job = ground.start(words, env=env, stdout=file, stderr=subprocess.STDOUT)

        def victim() -> Pod | None:
            at_work = {one["node"] for one in events(out) if one["event"] == "start"}
            return next((pod for pod in pods if pod.node in at_work), None)

        until(lambda: (victim() is not None and ready(out, log.read_text())) or job.poll() is not None)
        pod = victim()
        assert job.poll() is None and pod is not None, log.read_text()[-3000:]
        node, told = pod.node, time.time()
        seconds = pod.stop()
        assert job.wait(PATIENCE) == 0, log.read_text()[-5000:]
        after = [one for one in events(out) if one["time"] > told + 6]
        assert [one for one in after if one["event"] == "start" and one["node"] == node] == []
        assert [one for one in events(out) if one["event"] in ("lost", "hung")] == []
        metrics = out / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return seconds, log.read_text(), [json.loads(line)["step"] for line in lines]


def test_the_hook_waits_for_the_units_of_its_pod() -> None:
    """The pod's actor ends its unit, is given no other, and the hook returns: long before its time is over."""

    def ready(out: Path, log: str) -> bool:
        return len(list((out / "experts").glob("experts-*.json"))) >= 2

    more = ("expert.experts=40", "expert.epochs=200", "expert.keep=all", "scale.actors=3")
    seconds, log, _ = stopped_at_work("experts", more, ready)
    assert "is told to stop and gets no further units" in log and "attempt" not in log
    limit = float(hook()[hook().index("--seconds") + 1])
    assert seconds < limit - 5, seconds


def test_the_hook_makes_a_checkpoint() -> None:
    """None but that of the notice is made, and the run goes on from it."""

    def ready(out: Path, log: str) -> bool:
        return re.search(r"step \d+/", log) is not None

    more = ("scale.workers=2", "method.steps=600", "method.checkpoint=100000")
    _, log, steps = stopped_at_work("distill", more, ready)
    found = re.findall(r"a machine is about to be taken away: checkpoint of step (\d+)", log)
    assert found and int(found[0]) < 600
    assert steps == list(range(1, 601))
