"""`ray job submit` as a user types it: token, upload, success, failure, stop and again, metrics, logs."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.grounds import ROOT, Ground, Head, until
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
