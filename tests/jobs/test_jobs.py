"""Command lines: instant help, bad ones answered in one line, every shipped choice composed, a run from end to end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import compose
from jobs.compose import ask, command, options

ROOT = Path(__file__).resolve().parents[2]
VERBS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml") if path.stem != "run")


def run(verb: str, *words: str, cwd: Path = ROOT, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"jobs.{verb}", *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def test_every_verb_has_a_root_and_a_job() -> None:
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")} - {"__init__", "compose", "console", "bench"}
    assert jobs == set(VERBS)


@pytest.mark.parametrize("verb", [*VERBS, "bench"])
def test_help_is_instant(verb: str) -> None:
    code = (
        f"import sys, runpy; sys.argv=['jobs.{verb}', '--help']\n"
        f"try: runpy.run_module('jobs.{verb}', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'ray', 'hydra', 'numpy'} & set(sys.modules)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"python -m jobs.{verb}" in done.stdout
    assert time.monotonic() - began < 2.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


BAD: list[tuple[str, tuple[str, ...]]] = [
    ("dada=digits", ("dada", "data", "did you mean data?")),
    ("method.stepz=3", ("method.stepz", "did you mean method.steps?")),
    ("method.steps=many", ("method.steps=many", "a whole number")),
    ("budget.ipc=-1", ("budget.ipc=-1", "above zero")),
    ("'budget={ipc: 1, floats: 10}'", ("budget", "one of ipc, floats, bytes")),
    ("method=magic", ("method=magic", "mtt")),
    ("method.codec.name=pixels", ("method.codec.name=pixels", "pixel")),
    ("data=folder data.path=/nowhere/at/all", ("/nowhere/at/all",)),
    ("data=imagenet", ("data=imagenet", "digits")),
    ("net.norm=layer", ("net.norm=layer", "instance | group | batch | none")),
    ("scale=inline scale.workers=2", ("scale.workers=2", "laptop")),
    ("scale=cluster out=runs/here", ("out=runs/here", "absolute")),
    ("verbose", ("verbose", "KEY=VALUE")),
    ("seed=[", ("seed=[", "quotes")),
    ("'method.terms=[{name: mim4dd}]'", ("mim4dd", "views", "choose another objective")),
    ("'method={codec: {name: pixel, labels: soft}, objective: {name: distribution}}'", ("labels",)),
]


@pytest.mark.parametrize(("line", "says"), BAD, ids=[line for line, _ in BAD])
def test_a_bad_command_line_is_one_clear_line(
    line: str, says: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    from jobs.distill import act

    words = shlex.split(line)
    assert command("distill", "", act, argv=words) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1, err
    assert all(word in err for word in says), err


def test_as_a_process_too(tmp_path: Path) -> None:
    done = run("distill", "method.steps=none", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [], "a refusal leaves nothing behind"


CHOICES = [(group, option) for group in compose.GROUPS for option in options(group)]
NEEDS = {"folder", "parquet", "webdataset", "prepared"}


@pytest.mark.parametrize(("group", "option"), CHOICES, ids=[f"{g}={o}" for g, o in CHOICES])
def test_every_shipped_choice_is_a_run(group: str, option: str) -> None:
    words = [f"{group}={option}", "out=/somewhere"] + (["data.path=/somewhere"] if option in NEEDS else [])
    asked = ask("distill", tuple(words))
    assert asked.run.method.sentence
    assert len(asked.run.fingerprint()) == 64


def test_help_of_a_process_takes_no_two_seconds() -> None:
    took = []
    for _ in range(2):
        began = time.monotonic()
        assert run("pipeline", "--help").returncode == 0
        took.append(time.monotonic() - began)
    assert min(took) < 2


def test_cfg_prints_the_run_and_does_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from jobs.distill import act

    assert command("distill", "", act, argv=["--cfg", f"out={tmp_path}/x", "method=tesla"]) == 0
    out = capsys.readouterr().out
    assert "gradient: tesla" in out
    assert "# fingerprint: " in out
    assert list(tmp_path.iterdir()) == []


def test_a_sentence_of_ones_own_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from rayd.methods.pixel import Pixel\n\n\nclass Mine(Pixel):\n    pass\n\n\nCODECS = {'mine': Mine}\n"
    )
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "idea.yaml").write_text("codec: {name: mine}\nobjective: {name: mtt}\n")
    asked = ask("distill", (f"methods={tmp_path}", "method=idea", "method.steps=7"))
    assert (asked.run.method.sentence, asked.run.method.steps) == ("mine + mtt", 7)
    named = ask("distill", ("method={codec: {name: lodc}, objective: {name: distribution}}",))
    assert named.run.method.sentence == "lodc + distribution"


def test_from_end_to_end_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.pipeline import Own, act

    line = ["preset=smoke", f"out={tmp_path}/run"]
    assert command("pipeline", "", act, lambda: Own, argv=line) == 0
    first = capsys.readouterr().out
    for words in ("distilled", "random@floats", "full", "beats the coreset", "page: ", "next: python -m jobs.export"):
        assert words in first
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    assert command("pipeline", "", act, lambda: Own, argv=line) == 0
    assert capsys.readouterr().out.count("already done") == 4
    assert command("pipeline", "", act, lambda: Own, argv=[*line, "seed=1"]) == 2
    assert "another" in capsys.readouterr().err


@pytest.mark.ray
def test_from_end_to_end_on_ray(tmp_path: Path) -> None:
    """The same set as in one process, and the same bytes of experts."""
    for scale in ("inline", "laptop"):
        done = run("pipeline", "preset=smoke", f"scale={scale}", f"out={tmp_path}/{scale}", "stages=[experts,distill]")
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("experts/experts-00000.tar", "artifact/codec.safetensors"):
        assert (tmp_path / "inline" / name).read_bytes() == (tmp_path / "laptop" / name).read_bytes(), name


def test_the_benches_are_those_there_are() -> None:
    from jobs.bench import NAMES, main
    from rayd.studies.bench import BENCHES

    assert NAMES == BENCHES
    assert main(["speed"]) == 2
