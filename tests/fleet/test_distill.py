"""A distillation through its job: Ray Train against inline, processes killed, runs that cannot go on."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rayd.distill.budget import from_bytes
from rayd.run.experts import ExpertPlan, build
from tests.support.grounds import descendants
from tests.support.hashes import hashes
from tests.support.held import STEP
from tests.support.runs import digits_run, small_run

ROOT = Path(__file__).resolve().parents[2]
STEPS = 30
WORDS = (
    "data=digits", "net.depth=2", "net.width=8", "expert=quick", "expert.experts=4", "expert.epochs=6", "method=mtt",
    f"method.steps={STEPS}", "method.checkpoint=5", "method.compiled=false", "method.objective.last=2",
    "method.objective.inner_steps=6", "method.objective.batch=10", "method.objective.items=2", "method.optimiser.name=adam",
    "method.optimiser.lr=0.05",
)  # fmt: skip
QUICK = {"method": {"compiled": False, "objective": {"items": 2}}}


@pytest.fixture(scope="module")
def buffer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tiny experts, made once."""
    run = digits_run(tmp_path_factory.mktemp("experts"))
    for _ in build(ExpertPlan.open(run)):
        pass
    return run.experts_at


def start(
    out: Path, buffer: str, *words: str, limit: int | None = None, held: int | None = None
) -> subprocess.Popen[str]:
    """`held`: the step in which it stays until it is killed."""

    def bound() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    job = ["jobs.distill"] if held is None else ["tests.support.held", "distill"]
    command = [sys.executable, "-m", *job, *WORDS, f"buffer={buffer}", f"out={out}", *words]
    env = os.environ | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env |= {STEP: str(held)}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            preexec_fn=bound)  # fmt: skip


def end(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str]:
    text, _ = process.communicate(timeout=timeout)
    return process.returncode, text


def run(out: Path, buffer: str, *words: str) -> str:
    code, text = end(start(out, buffer, *words))
    assert code == 0, text
    return text


def learned(out: Path) -> dict[str, str]:
    """What must not differ between two equal runs."""
    names = ("codec.safetensors", "transform.json", "ledger.json")
    every = hashes(out / "artifact")
    return {name: every[name] for name in names}


@pytest.fixture(scope="module")
def undisturbed(buffer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    run(out, buffer)
    return out


def test_the_same_command_again_does_nothing(undisturbed: Path, buffer: str) -> None:
    before = (undisturbed / "artifact" / "card.json").stat().st_mtime_ns
    assert "already done" in run(undisturbed, buffer)
    assert (undisturbed / "artifact" / "card.json").stat().st_mtime_ns == before


def test_a_killed_driver_continues_to_the_same_bytes(undisturbed: Path, buffer: str, tmp_path: Path) -> None:
    process = start(tmp_path, buffer, held=10)
    wait_for(tmp_path, 10, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "artifact" / "card.json").exists()
    run(tmp_path, buffer)
    assert learned(tmp_path) == learned(undisturbed)
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, STEPS + 1))


@pytest.mark.ray
def test_two_train_workers_one_of_them_killed(undisturbed: Path, buffer: str, tmp_path: Path) -> None:
    """The set of the inline run, bit for bit, after the loss of a worker: Train starts the group again by itself."""
    words = ("scale=laptop", "scale.workers=2", "scale.cpus=0.5", "scale.threads=1")
    process = start(tmp_path, buffer, *words, held=10)
    wait_for(tmp_path, 10, process)
    workers = [pid for pid, name in descendants(process.pid) if "RayTrainWorker" in name]
    assert workers
    os.kill(workers[-1], signal.SIGKILL)
    code, text = end(process)
    assert code == 0, text
    assert learned(tmp_path) == learned(undisturbed)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["RayTrainWorker", "TrainController", "driver"])
@pytest.mark.parametrize("step", [5, 15, 25])
def test_kill_anything(undisturbed: Path, buffer: str, tmp_path: Path, victim: str, step: int) -> None:
    words = ("scale=laptop", "scale.workers=2", "scale.cpus=0.5", "scale.threads=1")
    process = start(tmp_path, buffer, *words, held=step)
    wait_for(tmp_path, step, process)
    found = [process.pid] if victim == "driver" else [pid for pid, name in descendants(process.pid) if victim in name]
    assert found, descendants(process.pid)
    os.kill(found[0], signal.SIGKILL)
    code, text = end(process)
    if victim == "RayTrainWorker":
        assert code == 0, text
    if code != 0:
        run(tmp_path, buffer, *words)
    assert learned(tmp_path) == learned(undisturbed)


@pytest.mark.ray
def test_a_busy_cluster_is_waited_for(buffer: str, tmp_path: Path, busy_cluster: None) -> None:
    """Other work holds every core: the workers wait for scale.startup, and the refusal says so."""
    from rayd.errors import Failed
    from rayd.fleet.distill import ANSWERING, PLACING, distill

    run = digits_run(tmp_path, changes={"buffer": buffer, "scale": {"name": "laptop", "startup": 2.0}, **QUICK})
    try:
        with pytest.raises(Failed, match=r"scale\.startup=2 s"):
            list(distill(run))
    finally:
        os.environ.pop(PLACING)
        os.environ.pop(ANSWERING)


def test_a_step_size_that_explodes(buffer: str, tmp_path: Path) -> None:
    code, text = end(start(tmp_path, buffer, "method.objective.step_size=1000"))
    assert code == 1
    assert "step_size" in text and "Traceback" not in text


def test_a_row_that_is_not_a_number(buffer: str, tmp_path: Path) -> None:
    """A buffer whose rows are whole but hold NaN: found on reading, named, and nothing is written."""
    spoiled = tmp_path / "spoiled"
    config = digits_run(spoiled, experts=1)
    plan = ExpertPlan.open(config)
    for _ in build(plan):
        pass
    spoil(spoiled / "experts")
    code, text = end(start(tmp_path / "out", str(spoiled / "experts")))
    assert code in (1, 2)
    assert "verify=true" in text and "Traceback" not in text
    assert not (tmp_path / "out" / "artifact").exists()


def test_memory_that_runs_out(buffer: str, tmp_path: Path) -> None:
    words = ("method.objective.batch=null", "budget.ipc=20000", "method.codec.start=noise")
    code, text = end(start(tmp_path, buffer, *words, limit=6 * 2**30))
    assert code == 1, text
    assert "out of memory" in text and "micro" in text and "Traceback" not in text


def test_more_workers_than_items_of_real_images_are_refused(tmp_path: Path) -> None:
    """Those of a trajectory's segment share its images instead (tests/methods/test_split.py)."""
    from rayd.errors import Refused
    from rayd.run.distill import Worker, distill

    config = small_run(out=str(tmp_path), method={"compiled": False, "objective": {"name": "distribution"}})
    with pytest.raises(Refused, match=r"scale\.workers=.*objective\.classes_per_item"):
        next(iter(distill(config, Worker(0, 3))))


def spoil(folder: Path) -> None:
    """Write NaN into every row of a buffer, with checksums that agree: what no writer of ours would commit."""
    for marker in folder.glob("experts-*.json"):
        told = json.loads(marker.read_text())
        tar = bytearray((folder / told["shard"]).read_bytes())
        for expert in told["experts"]:
            row = np.full(expert["row_bytes"] // 4, np.nan, dtype=np.float32).tobytes()
            for place in range(len(expert["epochs"])):
                at = expert["offset"] + place * expert["row_bytes"]
                tar[at : at + len(row)] = row
                expert["sha256"][place] = hashlib.sha256(row).hexdigest()
        (folder / told["shard"]).write_bytes(tar)
        marker.write_text(json.dumps(told | {"sha256": hashlib.sha256(tar).hexdigest()}))
    for manifest in folder.glob("*.parquet"):
        manifest.unlink()


def wait_for(out: Path, step: int, process: subprocess.Popen[str], seconds: float = 180) -> None:
    """Until the checkpoint of `step`, or a later one, is there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done = [int(p.stem.split("-")[1]) for p in (out / "checkpoints").glob("step-*.json")]
        if done and max(done) >= step:
            return
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"no checkpoint of step {step} within {seconds} s")


def test_checkpoints_are_plain_tensors(buffer: str, tmp_path: Path) -> None:
    """A checkpoint opens with safetensors alone."""
    process = start(tmp_path, buffer, held=5)
    wait_for(tmp_path, 5, process)
    newest = max((tmp_path / "checkpoints").glob("*.safetensors"))
    state = from_bytes(newest.read_bytes())
    process.kill()
    process.wait()
    assert any(name.startswith("optimiser/") for name in state) and "step" in state
