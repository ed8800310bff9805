"""Preparing: the same bytes however often it is killed, bad files by name, read back as views of mapped files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rayd.data.config import DataConfig
from rayd.data.load import load as load_data
from rayd.data.prepare import Preparation, prepare
from rayd.errors import Refused
from rayd.store import Store
from tests.support.hashes import hashes

SMALL: dict[str, Any] = {"name": "generated", "size": 8, "count": 100, "classes": 4}


pytestmark = pytest.mark.usefixtures("cache")


def folder_set(root: Path, n: int = 12) -> None:
    for c in ("a", "b"):
        for i in range(n):
            out = io.BytesIO()
            pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(out, "jpeg")
            path = root / "train" / c / f"{i:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(out.getvalue())


def test_prepared_is_what_was_prepared(tmp_path: Path) -> None:
    config = DataConfig(**SMALL)
    wrote = list(prepare(config, str(tmp_path / "to"), 30))
    assert [one.rows for one in wrote if one.part == "train"] == [30, 30, 30, 10]
    plain = load_data(config)
    ready = load_data(DataConfig(name="prepared", path=str(tmp_path / "to")))
    for part in ("train", "val", "test"):
        ours, theirs = getattr(ready, part), getattr(plain, part)
        assert torch.equal(ours.pixels_NCHW[:], theirs.pixels_NCHW[:]) and torch.equal(ours.labels_N, theirs.labels_N)
        assert np.array_equal(ours.histogram_CV, theirs.histogram_CV)
    assert len(ready.train.pixels_NCHW.files) == 4, "views of the mapped shards"
    assert not (tmp_path / "cache").exists(), "and no copy in the cache"
    assert ready.train.classes == plain.train.classes
    follow = load_data(DataConfig(name="prepared", path=str(tmp_path / "to"), split="next", limit=50, val=5))
    assert (len(follow.train), len(follow.val)) == (50, 5)


def test_killed_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    config = DataConfig(**SMALL)
    list(prepare(config, str(tmp_path / "whole"), 16))
    for _ in range(2):
        steps = prepare(config, str(tmp_path / "torn"), 16)
        next(steps)
        next(steps)
        steps.close()
    (tmp_path / "torn" / "train-00001.npy").write_bytes(b"cut short")
    (tmp_path / "torn" / "train-00002.json").unlink()
    list(prepare(config, str(tmp_path / "torn"), 16))
    assert hashes(tmp_path / "torn") == hashes(tmp_path / "whole")
    assert Store(tmp_path / "torn").sweep() == 0, "half-written files are left"
    assert list(prepare(config, str(tmp_path / "torn"), 16)) == []


def test_bad_files_are_named_and_another_plan_is_refused(tmp_path: Path) -> None:
    folder_set(tmp_path / "set")
    (tmp_path / "set" / "train" / "a" / "005.jpg").write_bytes(b"no picture")
    base: dict[str, Any] = {"name": "folder", "path": str(tmp_path / "set"), "size": 8, "resize": "crop"}
    with pytest.raises(Refused, match=r"max_bad=0.01.*005.jpg"):
        list(prepare(DataConfig(**base), str(tmp_path / "to"), 5))
    assert list(prepare(DataConfig(**base, max_bad=0.2), str(tmp_path / "to"), 5)) == [], "all shards were there"
    ready = load_data(DataConfig(name="prepared", path=str(tmp_path / "to"), val=0, max_bad=0.2))
    plain = load_data(DataConfig(**base, val=0, max_bad=0.2))
    assert torch.equal(ready.train.pixels_NCHW[:], plain.train.pixels_NCHW[:])
    assert [one["name"] for one in ready.train.manifest["skipped"]] in ([], ["train/a/005.jpg"])
    with pytest.raises(Refused, match=r"resize=pad.*crop.*another folder"):
        list(prepare(DataConfig(**(base | {"resize": "pad"})), str(tmp_path / "to"), 5))
    os.utime(tmp_path / "set" / "train" / "a" / "004.jpg", (1, 1))
    with pytest.raises(Refused, match=r"data=.*set.*time of change.*data=prepared"):
        list(prepare(DataConfig(**base), str(tmp_path / "to"), 5))
    with pytest.raises(Refused, match=r"data\.size=None"):
        Preparation(DataConfig(**(base | {"size": None})), str(tmp_path / "other"), 5)


@pytest.mark.ray
def test_ray_data_writes_the_same_bytes(tmp_path: Path, ray_local: None) -> None:
    from rayd.config.scale import ScaleConfig
    from rayd.fleet import prepare as fleet

    folder_set(tmp_path / "set", 20)
    config = DataConfig(name="folder", path=str(tmp_path / "set"), size=8)
    list(prepare(config, str(tmp_path / "inline"), 6))
    wrote = list(fleet.prepare(config, str(tmp_path / "fleet"), 6, ScaleConfig(name="laptop", actors=2)))
    assert sum(one.rows for one in wrote) == 40
    by_fleet = hashes(tmp_path / "fleet")
    assert by_fleet.pop("events.jsonl") and by_fleet.pop("work.json"), "who wrote what, and what it cost"
    assert by_fleet == hashes(tmp_path / "inline")


@pytest.mark.slow
def test_killed_processes_leave_nothing_wrong(tmp_path: Path) -> None:
    """SIGKILL twice, at any moment, then to the end: the bytes of a run that nobody disturbed."""
    config = "DataConfig(name='generated', size=32, count=20000)"
    imports = "from rayd.data.config import DataConfig; from rayd.data.prepare import prepare"
    code = f"{imports}; list(prepare({config}, {{to!r}}, 500))"
    torn = str(tmp_path / "torn")
    for number in (3, 20):
        process = subprocess.Popen([sys.executable, "-c", code.format(to=torn)])
        while not (tmp_path / "torn" / f"train-{number:05d}.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
    whole = DataConfig(name="generated", size=32, count=20000)
    list(prepare(whole, torn, 500))
    list(prepare(whole, str(tmp_path / "whole"), 500))
    assert hashes(torn) == hashes(tmp_path / "whole")
    assert Store(torn).sweep() == 0, "half-written files are left"
