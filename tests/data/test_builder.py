"""The cache folder: one builder at a time, nothing half-built is seen, drafts of the dead are removed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayd.data import builder
from rayd.data.builder import build
from rayd.errors import Failed

BUILD = """
import sys, time
from pathlib import Path
from rayd.data.builder import build
path, log = Path(sys.argv[1]), Path(sys.argv[2])
def fill(draft):
    with log.open("a") as file:
        file.write("built\\n")
    draft.mkdir()
    (draft / "half").write_text("x")
    time.sleep(float(sys.argv[3]))
    (draft / "whole").write_text("y")
build(path, lambda path: (path / "whole").exists(), fill)
assert (path / "half").exists() and (path / "whole").exists()
"""


def start(path: Path, log: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", BUILD, str(path), str(log), str(seconds)])


def test_one_process_builds_and_the_others_wait(tmp_path: Path) -> None:
    path, log = tmp_path / "cache" / "entry", tmp_path / "log"
    workers = [start(path, log, 0.5) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert log.read_text() == "built\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["entry"], "no lock and no draft is left"


def test_a_dead_builders_draft_is_removed_and_never_read(tmp_path: Path) -> None:
    cache, log = tmp_path / "cache", tmp_path / "log"
    worker = start(cache / "entry", log, 60)
    while not (cache / ".entry.draft" / "half").exists():
        assert worker.poll() is None
        time.sleep(0.01)
    worker.kill()
    worker.wait()
    assert not (cache / "entry").exists()
    build(cache / "other", Path.exists, lambda draft: draft.write_text("z") and None)
    assert sorted(entry.name for entry in cache.iterdir() if entry.name.endswith(".draft")) == []
    assert start(cache / "entry", log, 0).wait(60) == 0
    assert sorted(entry.name for entry in cache.iterdir()) == ["entry", "other"]


def test_a_builder_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = start(tmp_path / "entry", tmp_path / "log", 60)
    try:
        while not (tmp_path / ".entry.draft" / "half").exists():
            assert worker.poll() is None
            time.sleep(0.01)
        monkeypatch.setattr(builder, "STALLED_S", 0.3)
        with pytest.raises(Failed, match=r"entry: the process that builds it has written nothing"):
            build(tmp_path / "entry", Path.exists, lambda draft: None)
    finally:
        worker.kill()
        worker.wait()


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    def fill(draft: Path) -> None:
        draft.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(Failed, match=r"entry: no room left.*RAYD_CACHE"):
        build(tmp_path / "entry", Path.exists, fill)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "says"), [(30, "Read-only.*Allow it, or set RAYD_CACHE"), (5, "see to the disk")])
def test_other_errors_of_a_disk_are_said_too(tmp_path: Path, number: int, says: str) -> None:
    def fill(draft: Path) -> None:
        raise OSError(number, "Read-only file system" if number == 30 else "Input/output error")

    with pytest.raises(Failed, match=f"entry: .*{says}"):
        build(tmp_path / "entry", Path.exists, fill)
    assert list(tmp_path.iterdir()) == []
