"""Ten odd folders: the check says what is odd, and each runs with defaults or is refused with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import check, pipeline
from jobs.compose import ask, command
from tests.support.odd import ODD, plain

SAYS = {
    "imbalanced 1:100": (0, ("imbalance 107:1", "data.balance=true", "rare (3)")),
    "1 image a class": (2, ("refused", "at least one test image", "two images or more")),
    "16-bit grey": (0, ("values up to 3952", "data.bits=12", "data.channels=1", "data.size=28")),
    "31x57 px": (0, ("31x57 (120)", "data.size=32", "data.resize=squash")),
    "corrupted 5 %": (2, ("refused", "data.max_bad=0.01", "0000.png", "remove them or raise it")),
    "quotes and Unicode in names": (0, ("nothing is wrong", "4 classes")),
    "500 classes": (0, ("2,500 images of 500 classes", "budget.ipc=1")),
    "labels in a CSV": (0, ("labels.csv", "data.size=48", "144 images of 3 classes, 48 each")),
    "saved by datasets": (0, ("datasets saved", "180 images of 3 classes", "budget.ipc=6")),
    "test images in train": (0, ("20 test images are training images too", "too high")),
}
SHORT = ("method.steps=3", "expert.experts=1", "recipe.steps=10", "recipe.seeds=1")
"""Everything else is what follows from the data."""


def checked(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = command("check", "", check.act, argv=words)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_said(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, says = SAYS[name]
    ODD[name](tmp_path / "set")
    there, text = checked(["data=folder", f"data.path={tmp_path}/set", f"out={tmp_path}/out"], capsys)
    assert there == code, text
    assert [word for word in says if word not in text] == []
    kept = json.loads((tmp_path / "out" / "check.json").read_text())
    assert bool([one for one in kept["remarks"] if one[0] == "refused"]) == bool(code)


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_each_runs_or_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All stages with the settings that follow from the data, in few steps."""
    ODD[name](tmp_path / "set")
    words = ["data=folder", f"data.path={tmp_path}/set", f"out={tmp_path}/out", *SHORT]
    code = command("pipeline", "", pipeline.act, pipeline.KEYS, argv=words)
    captured = capsys.readouterr()
    assert code == SAYS[name][0], captured.err
    if code:
        assert "allowed is" in captured.err and "Traceback" not in captured.err
    else:
        assert "beats the coreset" in captured.out and (tmp_path / "out" / "report" / "index.html").is_file()


def test_what_follows_from_the_data_is_said_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain(tmp_path / "set", {"a": 40, "b": 40}, (40, 30))
    words = ["data=folder", f"data.path={tmp_path}/set", f"out={tmp_path}/out"]
    run = ask("distill", tuple(words)).run
    assert (run.data.size, run.data.resize, run.data.channels) == (32, "crop", 3)
    assert (run.net.depth, run.net.width, run.budget.ipc, run.method.steps) == (3, 32, 3, 200)
    assert run.method.objective.last_epoch <= run.expert.epochs
    assert command("distill", "", lambda asked: 0, argv=[*words, "--cfg"]) == 0
    captured = capsys.readouterr()
    assert "rayd: data.size=32   (a median picture is 40x30)" in captured.err and "  size: 32" in captured.out


def test_words_and_presets_come_before_what_follows(tmp_path: Path) -> None:
    plain(tmp_path / "set", {"a": 40, "b": 40}, (40, 30))
    words = ("data=folder", f"data.path={tmp_path}/set", "out=/somewhere")
    typed = ask("distill", (*words, "data.size=16", "budget.bytes=4000", "net=vgg11", "method.objective.last=7")).run
    assert (typed.data.size, typed.budget.bytes, typed.budget.ipc, typed.net.name) == (16, 4000, None, "vgg11")
    assert typed.method.objective.last == 7
    preset = ask("distill", (*words, "preset=mtt/cifar10_ipc1", "published=null")).run
    assert preset.data.size == 32 and preset.net.width == 128 and preset.method.steps == 5000
    ncfm = ask("distill", (*words, "method=ncfm")).run
    assert ncfm.method.part_names[1] == "ncfm" and ncfm.data.size == 32


def test_a_command_for_a_cluster_is_read_where_the_data_are_not() -> None:
    words = ("data=folder", "data.path=/not/here", "scale=cluster", "out=/shared/run", "method=nsd")
    asked = ask("pipeline", words, pipeline.KEYS)
    assert asked.settings == () and asked.run.data.size is None and asked.run.method.steps == 200
