"""`ray job submit` and `jobs.submit` as a user types them: token, upload, exit codes, stop and again, metrics, logs."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.grounds import PATIENCE, ROOT, Ground, Head, descendants, until
from tests.support.hashes import hashes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

TINY = (
    "data=digits", "data.limit=256", "net.depth=2", "net.width=8", "expert=quick", "expert.experts=4",
    "expert.epochs=6", "method=mtt", "method.objective.last=2", "method.objective.inner_steps=4",
    "method.objective.batch=20",
    "method.compiled=false", "budget.ipc=2", "scale=cluster", "scale.cpus=1", "scale.gpus=0", "scale.threads=1",
)  # fmt: skip


def job(verb: str, out: Path, *more: str) -> list[str]:
    return ["python", "-m", f"jobs.{verb}", *TINY, f"out={out}", *more]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with Ground.made() as ground:
        one = Head(ground)
        until(one.ready, every=1.0)
        yield one


def test_the_upload_is_small(tmp_path: Path) -> None:
    """What `--working-dir .` packs, by Ray's own packing."""
    from ray._private.runtime_env.packaging import create_package

    made = tmp_path / "upload.zip"
    create_package(str(ROOT), made, include_gitignore=True, excludes=[])
    largest = sorted((one.compress_size, one.filename) for one in zipfile.ZipFile(made).infolist())[-5:]
    assert made.stat().st_size < 2 * 2**20, largest


def test_the_upload_is_measured_as_ray_packs_it(tmp_path: Path) -> None:
    from rayd.fleet.submit import packed

    (tmp_path / ".rayignore").write_text("data/\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "huge.bin").write_bytes(bytes(10**6))
    (tmp_path / "large.py").write_text("x" * 5000)
    (tmp_path / "small.py").write_text("x")
    size, files = packed(tmp_path)
    assert files[0] == ("large.py", 5000) and 5000 < size < 10**4
    assert {name for name, _ in files} == {"large.py", "small.py", ".rayignore"}


def test_runtime_environments_are_rays() -> None:
    """Ray's own validation takes each; what a cluster has is not installed again, the rest at the tested versions."""
    from ray.runtime_env import RuntimeEnv

    from rayd.errors import Refused
    from rayd.fleet.submission import Submission
    from rayd.machine import __version__

    def made(**keys: Any) -> dict[str, Any]:
        return dict(RuntimeEnv(**Submission(vars={"RAYD_DATA": "/mnt/data"}, **keys).environment(ROOT)))

    assert made() == {"working_dir": str(ROOT), "env_vars": {"RAYD_DATA": "/mnt/data"}}
    for env in ("uv", "pip"):
        packages = made(env=env, extras=("report", "search"))[env]["packages"]
        names = {one.split("==")[0] for one in packages}
        assert {"hydra-core", "webdataset", "matplotlib", "optuna"} <= names and not names & {"ray", "torch"}
        assert all("==" in one for one in packages), packages
    assert Submission(env="uv").environment(None) == {"uv": [f"rayd[jobs,report]=={__version__}"]}, (
        "an installed rayd uploads nothing"
    )
    image = Submission(env="image", image="registry.example.com/rayd:0.1.0-cuda")
    assert dict(RuntimeEnv(**image.environment(ROOT))) == {"image_uri": "registry.example.com/rayd:0.1.0-cuda"}
    assert "WORKDIR /srv/rayd" in (ROOT / "infra" / "Dockerfile").read_text()
    assert image.command("python -m jobs.plan").startswith("cd /srv/rayd && ")
    with pytest.raises(Refused, match=r"submit\.image=None"):
        Submission(env="image")


def submit(head: Head, *words: str) -> tuple[int, str]:
    return head.ground.run(["python", "-m", "jobs.submit", *words], {"RAY_API_SERVER_ADDRESS": head.url})


def test_without_the_token_nothing_runs(head: Head) -> None:
    for path in ("/api/jobs/", "/api/version", "/nodes?view=summary"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(head.url + path, timeout=30)
    other = head.ground.folder / "other"
    other.write_text("0" * 64)
    code, said = head.submit(["true"], {"RAY_AUTH_TOKEN_PATH": str(other)})
    assert code != 0 and ("401" in said or "403" in said or "nauthor" in said or "nvalid" in said), said[-500:]


def test_a_job_succeeds_and_leaves_its_metrics(head: Head) -> None:
    out = head.ground.folder / "runs" / "experts"
    code, said = head.submit(job("experts", out))
    assert code == 0, said[-3000:]
    assert "4 experts made" in said and "shards" in said
    assert len(hashes(out / "experts", "*.tar")) == 4
    names = scraped(head)
    assert {"ray_rayd_experts_completed_total", "ray_rayd_buffer_bytes"} <= names


def scraped(head: Head) -> set[str]:
    """Names of what Prometheus would read; Ray exports what a process counted within seconds."""
    found: set[str] = set()
    stop = time.monotonic() + 40
    while time.monotonic() < stop and "ray_rayd_experts_completed_total" not in found:
        with urllib.request.urlopen(head.metrics, timeout=30) as answer:
            found |= set(re.findall(r"^(ray_\w+)", answer.read().decode(), re.M))
        time.sleep(1)
    return found


def test_failure_is_failure_and_says_why(head: Head) -> None:
    out = head.ground.folder / "runs" / "wrong"
    code, said = head.submit(job("experts", out, "scale.cpus=99"))
    assert code != 0
    assert "one expert actor needs CPU 99" in said


def test_a_submission_ends_with_the_jobs_own_code(head: Head) -> None:
    """0 and 2: done, and refused by the cluster; and what is refused here is not uploaded."""
    out = head.ground.folder / "runs" / "coded"
    code, said = submit(head, "experts", *TINY, f"out={out}", "submit.cpus=0.5")
    assert code == 0, said[-3000:]
    assert "upload of" in said and "the largest:" in said and "4 experts made" in said and "succeeded" in said
    code, said = submit(head, "experts", *TINY, f"out={out}-2", "scale.cpus=99", "submit.cpus=0.5")
    assert code == 2 and "needs CPU 99" in said and "failed with exit code 2" in said, said[-3000:]
    code, said = submit(head, "experts", *TINY, f"out={out}-3", "scale=laptop")
    assert code == 2 and "cluster for a job that is submitted" in said and "upload" not in said


@pytest.mark.slow
def test_a_submission_of_a_job_that_fails_ends_with_one(head: Head) -> None:
    out = head.ground.folder / "runs" / "damaged"
    code, said = submit(head, "experts", *TINY, f"out={out}", "submit.cpus=0.5")
    assert code == 0, said[-3000:]
    shard = next((out / "experts").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-4000])
    code, said = submit(head, "experts", *TINY, f"out={out}", "verify=true", "submit.cpus=0.5")
    assert code == 1 and "failed with exit code 1" in said and "Traceback" not in said, said[-3000:]


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running(head: Head) -> None:
    """It says how to follow and how to stop; the job, followed again and stopped meanwhile, ends with 1."""
    out = head.ground.folder / "runs" / "long"
    words = [
        "experts",
        *TINY,
        f"out={out}",
        "expert.epochs=2000",
        "expert.keep=all",
        "submit.id=long",
        "submit.cpus=0.5",
    ]
    env = {**head.ground.env, "RAY_API_SERVER_ADDRESS": head.url}
    log = head.ground.folder / "submit.log"
    with open(log, "w") as file:
        child = head.ground.start(
            ["python", "-m", "jobs.submit", *words], env=env, stdout=file, stderr=subprocess.STDOUT
        )
    until(lambda: "experts  shards" in log.read_text() or child.poll() is not None)
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130, log.read_text()[-3000:]
    said = log.read_text()
    assert "long goes on" in said and "submit.follow=long" in said and "ray job stop long" in said
    assert "Traceback" not in said
    status = ["ray", "job", "status", "--address", head.url, "long"]
    assert "RUNNING" in head.ground.run(status)[1]
    with open(log, "w") as file:
        child = head.ground.start(
            ["python", "-m", "jobs.submit", "submit.follow=long"], env=env, stdout=file, stderr=subprocess.STDOUT
        )
    until(lambda: "experts  shards" in log.read_text() or child.poll() is not None)
    assert child.poll() is None, log.read_text()[-3000:]
    head.ground.run(["ray", "job", "stop", "--address", head.url, "long"])
    assert child.wait(120) == 1 and "long was stopped" in log.read_text(), log.read_text()[-3000:]


@pytest.mark.slow
def test_a_stopped_job_continues(head: Head) -> None:
    """`ray job stop` in the middle of a distillation; the same command finishes it; the plan had it right."""
    out = head.ground.folder / "runs" / "stopped"
    words = job("pipeline", out, "stages=[experts,distill]", "method.steps=300", "method.checkpoint=10")
    code, said = head.submit(words, more=("--no-wait", "--submission-id", "first"))
    assert code == 0, said
    until(lambda: any((out / "checkpoints").glob("step-*.json")))
    code, said = head.ground.run(["ray", "job", "stop", "--address", head.url, "first"])
    assert code == 0, said
    assert not (out / "artifact" / "card.json").exists()
    code, said = head.submit(words)
    assert code == 0, said[-3000:]
    assert "already done" in said and (out / "artifact" / "card.json").exists()
    told = head.ground.run(job("plan", out, "probe=0", "method.steps=300", "method.checkpoint=10"))[1]
    actual = re.findall(r"actual +(\S+ \S+): planned (\S+), is (\S+)", told)
    assert len(actual) == 3 and all(planned == found for _, planned, found in actual), told


@pytest.mark.slow
def test_the_rayjobs_command_waits_for_nodes_that_come_late() -> None:
    """The entry point as the manifest has it, tiny by words after it; the driver where the driver's resource is, and the
    actors on a node that joins 60 s after the command."""
    spec = yaml.safe_load((ROOT / "infra" / "kuberay" / "job.yaml").read_text())["spec"]
    with Ground.made() as ground:
        head = Head(ground, cpus=1, more=(f"--resources={spec['entrypointResources']}",))
        until(head.ready, every=1.0)
        out = ground.folder / "runs" / "rayjob"
        smaller = [word for word in TINY if not word.startswith("scale")]
        smaller += [
            "method.steps=20",
            "recipe=quick",
            "recipe.steps=20",
            "recipe.seeds=2",
            f"out={out}",
            "data.path=null",
        ]
        smaller += ["scale.cpus=0.5", "scale.gpus=0", "scale.threads=1", "preset=smoke", "expert.epochs=6"]
        changed = {word.split("=")[0] for word in smaller}
        words = [one for one in shlex.split(spec["entrypoint"]) if one.split("=")[0] not in changed] + smaller
        assert {"scale=cluster", "scale.wait=900", "scale.actors=8"} <= set(words)
        more = ("--entrypoint-num-cpus", str(spec["entrypointNumCpus"]))
        more += ("--entrypoint-resources", spec["entrypointResources"])
        command = ["ray", "job", "submit", "--address", head.url, "--working-dir", ".", *more, "--", *words]
        log = ground.folder / "job.log"
        with open(log, "w") as file:
            job = ground.start(command, stdout=file, stderr=subprocess.STDOUT)
        until(lambda: "waiting up to 900 s for nodes" in log.read_text() or job.poll() is not None)
        time.sleep(60)
        assert job.poll() is None and not list((out / "experts").glob("*.tar")), log.read_text()[-3000:]
        head.join(cpus=2)
        assert job.wait(PATIENCE) == 0, log.read_text()[-3000:]
        assert (out / "report" / "index.html").exists()


ASK = (
    "from ray._raylet import GcsClient\n"
    "from ray.autoscaler.v2.sdk import get_cluster_resource_state\n"
    "state = get_cluster_resource_state(GcsClient(address={address!r}))\n"
    "names = ('pending_gang_resource_requests', 'pending_resource_requests', 'cluster_resource_constraints')\n"
    "print('STANDING', sum(len(getattr(state, name)) for name in names))\n"
)


def standing(head: Head) -> int:
    """Requests that an autoscaler would see, asked of Ray itself."""
    code, said = head.ground.run([sys.executable, "-c", ASK.format(address=head.address)])
    found = re.search(r"STANDING (\d+)", said)
    assert code == 0 and found is not None, said
    return int(found[1])


@pytest.mark.slow
def test_no_request_to_an_autoscaler_outlives_its_asker(head: Head) -> None:
    """Asked for nodes that never come: by a driver that is killed, by a job that is stopped, by one that gives up."""
    assert standing(head) == 0

    def asks(name: str) -> Path:
        out = head.ground.folder / "runs" / name
        words = job("experts", out, "scale.cpus=64", "scale.wait=600")
        code, said = head.submit(words, more=("--no-wait", "--submission-id", name))
        assert code == 0, said
        until(lambda: standing(head) > 0, every=1.0)
        return out

    asks("killed")
    drivers = [
        pid for pid, name in descendants(head.child.pid) if "-m jobs.experts" in name and "scale.wait=600" in name
    ]
    assert drivers
    for pid in drivers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: standing(head) == 0, seconds=60, every=1.0)
    asks("halted")
    head.ground.run(["ray", "job", "stop", "--address", head.url, "halted"])
    until(lambda: standing(head) == 0, seconds=60, every=1.0)
    code, said = head.submit(job("experts", head.ground.folder / "runs" / "given", "scale.cpus=64", "scale.wait=9"))
    assert code != 0 and "none came within scale.wait=9 s" in said
    assert standing(head) == 0


@pytest.mark.slow
def test_a_restarted_head_loses_nothing() -> None:
    """Everything on the machine but the store is gone between two submissions."""
    with Ground.made() as ground:
        first = Head(ground)
        until(first.ready, every=1.0)
        out = ground.folder / "runs" / "restart"
        words = job("experts", out, "expert.experts=12", "expert.epochs=20")
        code, said = first.submit(words, more=("--no-wait",))
        assert code == 0, said
        until(lambda: len(list((out / "experts").glob("experts-*.json"))) >= 2)
        from tests.support.grounds import end

        end(first.child)
        before = hashes(out / "experts", "experts-*.tar")
        marked = {path.stem for path in (out / "experts").glob("experts-*.json")}
        second = Head(ground)
        until(second.ready, every=1.0)
        code, said = second.submit(words)
        assert code == 0, said[-3000:]
        after = hashes(out / "experts", "experts-*.tar")
        assert len(after) == 12
        assert all(after[name] == digest for name, digest in before.items() if name.removesuffix(".tar") in marked)
