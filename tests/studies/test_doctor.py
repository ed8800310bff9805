"""The doctor: each planted fault is named, on this machine, on a node of another kind, on Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayd.studies.doctor import LATENCY_SLOW, Line, all_versions, judge, token_facts
from tests.support.runs import small_run

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"mode": "token", "token": True, "readable": False}


def node(**other: Any) -> dict[str, Any]:
    """A node where all is well."""
    step = {"eager": 0.2, "compiled": 0.1, "compiled_first": 3.0, "gap": 1e-6}
    data = {"train": 80, "val": 9, "test": 30, "seconds": 0.1, "content": "abc"}
    sizes = {"memory": 2**34, "shared": 2**34, "disk": {"out": 2**40}, "cache": "1 MB"}
    return {
        "host": "node", "versions": all_versions(), "gpus": [], "driver": "", "compiler": True, "out": {"seconds": 0.01},
        "data": data, "step": step, **sizes, **other,
    }  # fmt: skip


def lines(*nodes: dict[str, Any], gpus: float = 0, reduce: Any = None, token: Any = QUIET) -> list[Line]:
    run = small_run(scale={"name": "cluster", "gpus": gpus}, out="/shared/out")
    return list(judge(run, all_versions(), nodes, reduce, token))


def test_nothing_is_wrong_where_all_is_well() -> None:
    found = lines(node(), node(), reduce={"right": True, "seconds": 0.01, "size": 2, "backend": "gloo"})
    assert {line.state for line in found} == {"ok"}
    assert not [line for line in found if line.do]


FAULTS: dict[str, tuple[str, Callable[[], list[Line]], str]] = {
    "no compiler": ("compiler", lambda: lines(node(), node(compiler=False)), "slow"),
    "out is read-only": ("out", lambda: lines(node(out={"error": "no permission"})), "wrong"),
    "out is far": ("out", lambda: lines(node(out={"seconds": 2 * LATENCY_SLOW})), "slow"),
    "data are missing": ("data", lambda: lines(node(data={"error": "data.path=/nowhere"})), "wrong"),
    "data differ": ("data", lambda: lines(node(), node(data={**node()["data"], "content": "x"})), "wrong"),
    "tiny shared memory": ("shared memory", lambda: lines(node(shared=64 * 2**20)), "wrong"),
    "no token": ("token mode", lambda: lines(node(), token={**QUIET, "token": False}), "wrong"),
    "an open cluster": ("token mode", lambda: lines(node(), token={**QUIET, "mode": "disabled"}), "wrong"),
    "a token for all": ("token mode", lambda: lines(node(), token={**QUIET, "readable": True}), "wrong"),
    "another torch": (
        "versions",
        lambda: lines(node(), node(versions=all_versions() | {"torch": "2.11.0"}, host="odd")),
        "wrong",
    ),
    "no GPU": ("device", lambda: lines(node(step={"error": "no CUDA device"}), gpus=1), "wrong"),
    "a wrong sum": ("all-reduce", lambda: lines(node(), reduce={"error": "NCCL timed out"}), "wrong"),
    "a wrong step": ("step", lambda: lines(node(step={**node()["step"], "gap": 0.1})), "wrong"),
    "a full disk": ("free disk", lambda: lines(node(disk={"out": 2**29})), "wrong"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_with_what_to_do(fault: str) -> None:
    what, found, state = FAULTS[fault]
    said = [line for line in found() if line.state != "ok"]
    assert (what, state) in {(line.what, line.state) for line in said}
    assert all(line.do for line in said)


def test_a_gpu_that_is_not_asked_for_is_pointed_out() -> None:
    (line,) = [line for line in lines(node(gpus=["L4"])) if line.what == "device"]
    assert line.state == "ok" and "L4 is not used" in line.finding and "scale.gpus=1" in line.do


def test_the_token_is_looked_for_and_never_read(tmp_path: Path) -> None:
    assert not token_facts({"RAY_AUTH_MODE": "token"}, tmp_path)["token"]
    held = tmp_path / ".ray" / "auth_token"
    held.parent.mkdir()
    held.write_text("secret")
    held.chmod(0o644)
    found = token_facts({"RAY_AUTH_MODE": "token"}, tmp_path)
    assert found == {"mode": "token", "token": True, "readable": True}


def doctor(*words: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "RAYD_DATA")}
    env = {**kept, "PYTHONPATH": str(ROOT), "HOME": str(home), "RAYD_CACHE": str(home / "cache"), **environment}
    command = [sys.executable, "-m", "jobs.doctor", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_faults_of_this_machine(tmp_path: Path) -> None:
    """No compiler, `out` that cannot be written, data that are not there, token mode without a token."""
    words = ("data=cifar10", f"data.path={tmp_path}/nowhere", "out=/proc/rayd")
    done = doctor(*words, home=tmp_path, PATH="", RAY_AUTH_MODE="token")
    assert done.returncode == 1, done.stderr
    wrong = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("wrong")]
    assert wrong == ["data", "out", "free", "token"], done.stdout
    assert "slow  compiler" in done.stdout
    assert str(tmp_path) not in done.stdout, "no name of a home"


@pytest.mark.ray
def test_nodes_and_workers_answer(tmp_path: Path, ray_local: None) -> None:
    from rayd.fleet.doctor import between_workers, on_every_node

    run = small_run(scale={"name": "laptop"}, out=str(tmp_path))
    (here,) = on_every_node(run)
    assert here["versions"] == all_versions()
    assert here["step"]["gap"] < 1e-4
    reduce = between_workers(run)
    assert reduce is not None and reduce["right"] and reduce["backend"] == "gloo" and reduce["size"] == 2
