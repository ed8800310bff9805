"""Command lines: instant help, bad ones answered in one line, every shipped choice composed, a run from end to end."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from jobs import compose
from jobs.compose import ask, command, options
from rayd.errors import Refused
from tests.support.odd import plain

ROOT = Path(__file__).resolve().parents[2]
NO_VERBS = {"__init__", "bench", "compose", "console", "help", "new", "presets", "published", "zoo"}
VERBS = sorted({path.stem for path in (ROOT / "jobs").glob("*.py")} - NO_VERBS)


def run(verb: str, *words: str, cwd: Path = ROOT, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"jobs.{verb}", *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def keys(verb: str) -> str:
    return getattr(importlib.import_module(f"jobs.{verb}"), "KEYS", "")


def test_a_root_is_a_verbs() -> None:
    """`run.yaml` serves every verb that has no root of its own."""
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} <= {*VERBS, "run"}
    for verb in VERBS:
        asked = ask(verb, ("out=/somewhere",), keys(verb))
        assert isinstance(asked.own, compose.keys_class(keys(verb)))


def test_a_yes_is_no_path() -> None:
    """`verify` is a switch of one verb and a path of another."""
    assert ask("experts", ("verify=true", "out=/somewhere"), keys("experts")).own.verify is True
    assert ask("evaluate", ("verify=x/artifact",), keys("evaluate")).own.verify == str(Path("x/artifact").resolve())


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
    ("method.objective.step_optimiser=sgd", ("step_optimiser", "no such key")),
    ("'method.objective.augment.ops=[flop]'", ("augment.ops[0]=flop", "flip")),
    ("method.name=mine", ("method.name=mine", "no such key")),
    ("preset=mtt/cifar10_ipc1 method=nsd", ("method=nsd", "mtt", "preset=mtt/cifar10_ipc1 is for")),
    ("preset=ours/lss_cifar10_ipc1 method=mtt", ("method=mtt", "lss")),
    ("preset=mtt/cifar10_ipc2", ("mtt/cifar10_ipc1 | ", "did you mean")),
    ("preset=mtk", ("mtt/...", "cpu")),
    ("'published={ipc: 1}'", ("published.method",)),
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
NEEDS = {"parquet", "webdataset", "prepared"}


@pytest.mark.parametrize(("group", "option"), CHOICES, ids=[f"{g}={o}" for g, o in CHOICES])
def test_every_shipped_choice_is_a_run(group: str, option: str, tmp_path: Path) -> None:
    words = [f"{group}={option}", "out=/somewhere"] + (["data.path=/somewhere"] if option in NEEDS else [])
    if option == "folder":  # is looked into: settings follow from it
        plain(tmp_path, {"a": 4, "b": 4})
        words.append(f"data.path={tmp_path}")
    asked = ask("distill", tuple(words))
    assert asked.run.method.sentence
    assert len(asked.run.fingerprint()) == 64


METHODS = options("method")


@pytest.mark.parametrize("method", METHODS)
def test_presets_of_scale_go_with_every_method(method: str) -> None:
    for preset in (name for name in options("preset") if "/" not in name):
        asked = ask("distill", (f"preset={preset}", f"method={method}", "out=/somewhere"))
        plain = ask("distill", (f"method={method}", "out=/somewhere"))
        assert asked.run.method.part_names[:2] == plain.run.method.part_names[:2]
        assert asked.run.method.steps < plain.run.method.steps


def test_a_section_of_a_preset_stands_below_the_command_line() -> None:
    words = ("preset=cpu", "method=nsd", "out=/somewhere")
    run = ask("distill", words).run
    assert (run.method.steps, run.method.part_names, run.method.objective.inner_steps) == (200, ("nsd", "mtt"), 20)
    run = ask("distill", (*words, "method.steps=7", "method.terms=[{name: guidance}]")).run
    assert (run.method.steps, run.method.part_names) == (7, ("nsd", "mtt", "guidance"))
    assert ask("distill", ("preset=cpu", "method=dwa", "out=/somewhere")).run.net.norm == "batch"


def test_presets_of_a_method_stay_within_their_family() -> None:
    """The cells of a wrong preset's family, and no other's."""
    with pytest.raises(Refused) as refusal:
        ask("distill", ("preset=mtt/cifar10_ipc2",))
    assert "datm" not in str(refusal.value) and str(refusal.value).count("mtt/") >= 11


LEAST = {
    "RESULTS.md": 17, "infra/README.md": 2, "rayd/methods/README.md": 9, "docs/results/factorised.md": 11,
    "docs/results/features.md": 10, "docs/results/bytes.md": 2, "docs/results/decoupled.md": 3,
    "docs/results/search.md": 1, "docs/results/continual.md": 1, "docs/results/speed.md": 1, "docs/results/theory.md": 1,
}  # fmt: skip
"""Texts, and how many commands of verbs each has at least."""


def lines_of(text: str) -> Iterator[str]:
    """Every command of a text, and every row of a table joined to the command that its paragraph gives."""
    text = text.replace("\\\n", " ")
    shared = (re.findall(r'^W="([^"]*)"', text, flags=re.M) or [""])[-1]
    text = re.sub(r"^```.*?^```", lambda block: re.sub(r"\n(?=\S)", ";", block[0]), text, flags=re.M | re.S)
    base = ""
    for piece in re.split(r"(?<=\n)(?=\|)|\n\n", text):
        row = next((cell for cell in piece.split(" | ") if cell.startswith("`method=")), "")
        if piece.startswith("|") and base and row:
            yield f"{base} {row.split('`')[1]}"
            continue
        for words in re.findall(r"python -m (jobs\.[a-z]+[^`;|#]*)", piece):
            line = " ".join(words.replace("$W", shared).split())
            base = line if "very row" in piece else ""
            yield line


@pytest.mark.parametrize("text", LEAST)
def test_every_command_of_the_texts_is_understood(text: str) -> None:
    import shlex

    count = 0
    for line in lines_of((ROOT / text).read_text()):
        job, *words = shlex.split(line)
        verb = job.removeprefix("jobs.")
        if verb in VERBS:
            ask(verb, tuple(word for word in words if "=" in word), keys(verb))
            count += 1
    assert count >= LEAST[text], count


def helped(capsys: pytest.CaptureFixture[str], verb: str, *words: str) -> str:
    module = importlib.import_module(f"jobs.{verb}")
    assert command(verb, module.__doc__, module.act, keys(verb), argv=["--help", *words]) == 0
    return capsys.readouterr().out


def test_help_names_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys, "pipeline")
    for group in compose.GROUPS:
        for option in options(group):
            assert re.search(rf"(?<![\w/]){option.split('/')[0]}(?![\w])", text), f"{group}={option}"
    assert "..." not in text.split("Choices")[1].split("Keys")[0]
    assert max(map(len, text.splitlines())) <= 125
    assert "stages=" in text and "Expert buffer; null: `experts` under `out`." in text


def test_help_of_presets_and_parts(capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys, "distill", "preset")
    for name in options("preset"):
        assert re.search(rf"\b{name.split('/')[-1]}\b", text), name
    text = helped(capsys, "distill", "method.codec")
    assert "method.codec.name=nsd" in text and "method.codec.rank=" in text and "fp32 | fp16 | bf16 | int8" in text
    assert "name=pixel" not in helped(capsys, "distill", "method.codec.nsd")
    assert "method.objective.psi=" in helped(capsys, "distill", "method.objective.ncfm")
    assert "method.optimiser.momentum=" in helped(capsys, "distill", "method.optimiser")
    assert "search.trials=8" in helped(capsys, "search", "search")
    assert "recipe=ncfm" in helped(capsys, "distill", "recipe")
    assert command("distill", "", lambda asked: 0, argv=["--help", "method.codex"]) == 2


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
    assert OmegaConf.create(out).method.steps == 1000, "comments leave it YAML"
    assert "# fingerprint: " in out
    assert list(tmp_path.iterdir()) == []


def test_cfg_says_what_each_key_is_for() -> None:
    asked = ask("distill", ("preset=mtt/cifar10_ipc10", "out=/somewhere"))
    lines = [line for line in compose.resolved(asked).splitlines() if re.match(r" *(- )?\w+:", line)]
    explained = [line for line in lines if "   # " in line]
    assert len(lines) > 100 and len(explained) >= 0.9 * len(lines), set(lines) - set(explained)
    assert "  inner_steps: 30   # N: steps of the student." in compose.resolved(asked)


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
    from jobs.pipeline import KEYS, act

    line = ["preset=smoke", f"out={tmp_path}/run"]
    assert command("pipeline", "", act, KEYS, argv=line) == 0
    first = capsys.readouterr().out
    for words in ("distilled", "random@floats", "full", "beats the coreset", "page: ", "next: python -m jobs.export"):
        assert words in first
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    assert command("pipeline", "", act, KEYS, argv=line) == 0
    assert capsys.readouterr().out.count("already done") == 4
    assert command("pipeline", "", act, KEYS, argv=[*line, "seed=1"]) == 2
    assert "another" in capsys.readouterr().err
    few = ["preset=smoke", f"out={tmp_path}/few", f"buffer={tmp_path}/run/experts", "stages=[distill,evaluate]"]
    assert command("pipeline", "", act, KEYS, argv=[*few, "controls=[random@floats]"]) == 0
    second = capsys.readouterr().out
    assert "random@floats" in second and "full" not in second


def test_the_next_command_can_be_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a shell would make of a folder's name."""
    from jobs.prepare import KEYS, act

    out = tmp_path / "mine & yours"
    assert command("prepare", "", act, KEYS, argv=["data=digits", "scale=inline", f"out={out}"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(told)[-3:] == ["data=prepared", f"data.path={out}/data", f"out={out}"]


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
