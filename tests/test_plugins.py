"""Code of a folder of one's own, of every kind, through every verb, from the command line and from Python."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rayd
from rayd.choices import plugins
from rayd.errors import Refused
from tests.support import own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own.write(tmp_path_factory.mktemp("own"))


def words(folder: Path, out: Path) -> list[str]:
    return [
        f"methods={folder}", "method=mine", "net=flat", "recipe=brief", "data=npz", f"data.path={folder / 'data'}",
        "method.steps=6", "method.checkpoint=2", "method.compiled=false", "budget.ipc=2", f"out={out}",
    ]  # fmt: skip


def command(verb: str, argv: list[str]) -> int:
    from jobs.compose import command as run

    module: Any = importlib.import_module(f"jobs.{verb}")
    return run(verb, module.__doc__, module.act, getattr(module, "KEYS", ""), argv)


@pytest.fixture(scope="module")
def distilled(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of everything at once, by the command line."""
    out = tmp_path_factory.mktemp("runs") / "run"
    line = [*words(folder, out), "controls=[random@floats,first@floats]"]
    assert command("distill", line[:-1]) == 0
    assert command("evaluate", line) == 0
    return out


def test_every_kind_is_found(folder: Path) -> None:
    found = plugins.load(str(folder))
    assert {kind: list(getattr(found, kind)) for kind in plugins.KINDS} == {
        "codecs": ["mirrored"], "objectives": ["gap"], "terms": ["dark"], "nets": ["flat"], "formats": ["npz"],
        "augmentations": ["fade"], "controls": ["first"],
    }  # fmt: skip
    assert plugins.load(str(folder)) is found, "a process runs the files once"
    assert plugins.load(None) is plugins.NONE
    for beside in (".venv/lib.py", "tests/test_more.py", "tests/helper.py"):
        (folder / beside).parent.mkdir(exist_ok=True)
        (folder / beside).write_text("raise RuntimeError('never loaded')\n")
    assert plugins.source_hash(str(folder)) == found.source


def test_the_command_line_scores_exports_reports_verifies_and_searches(
    distilled: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = words(folder, distilled)
    assert command("evaluate", [*base, "controls=[first@floats]"]) == 0
    assert "first@floats" in capsys.readouterr().out
    assert command("export", [*base, f"to={tmp_path / 'parquet'}"]) == 0
    assert command("report", base) == 0
    assert "mirrored" in (distilled / "report" / "index.html").read_text()
    assert command("evaluate", [*base, f"verify={distilled / 'artifact'}"]) == 0
    assert "the claim holds" in capsys.readouterr().out
    assert command("plan", [*base, "probe=0"]) == 0
    assert command("distill", base) == 0
    assert "is already done" in capsys.readouterr().out
    dials = ["search.space={method.optimiser.lr: [0.01, 0.1]}", "search.trials=2", "search.searcher=grid"]
    short = ["search.steps=2", "search.every=1", "search.grace=1", "search.winner=1", f"out={tmp_path / 'search'}"]
    assert command("search", [*base, *dials, *short]) == 0
    assert "winner" in capsys.readouterr().out


def test_python_loads_scores_exports_and_verifies(distilled: Path, folder: Path, tmp_path: Path) -> None:
    at, data = distilled / "artifact", {"name": "npz", "path": str(folder / "data")}
    artifact = rayd.load(at, methods=folder)
    assert artifact.images().shape == (12, 1, 8, 8)
    assert (artifact.images() - artifact.images().flip(-1)).abs().max() == 0
    assert rayd.export(artifact, tmp_path / "folder", "folder")
    findings = rayd.verify(at, data=data, methods=folder)
    assert len(findings) >= 9 and all(finding.holds for finding in findings)
    score = rayd.evaluate(artifact, data=data, methods=folder, seeds=1)
    assert score["net"] == "flat" and score["n"] == 1
    work = rayd.run(words(folder, distilled)[:-1], out=distilled, methods=folder)
    assert list(work) == [] and len(work.result()) == 12


def test_nothing_is_executed_where_no_folder_is_named(distilled: Path, folder: Path) -> None:
    before = set(sys.modules)
    artifact = rayd.load(distilled / "artifact")
    assert artifact.card["sentence"] == "mirrored + gap + dark"
    with pytest.raises(Refused, match="a codec of one's own needs its folder: methods=FOLDER"):
        artifact.images()
    with pytest.raises(Refused, match=r"methods=FOLDER"):
        rayd.export(distilled / "artifact", "nowhere")
    with pytest.raises(Refused, match=r"methods=FOLDER"):
        rayd.verify(distilled / "artifact")
    assert not [name for name in set(sys.modules) - before if name.startswith("rayd_own_")]


def test_code_that_was_edited_is_refused(
    distilled: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On resume, where an artifact is loaded, and in a buffer of experts."""
    mine = own.write(tmp_path / "own")
    steps = iter(rayd.run(words(mine, tmp_path / "out")[:-1], out=tmp_path / "out", methods=mine))
    assert [next(steps).number for _ in range(3)] == [1, 2, 3]
    steps.close()
    edited = own.write(tmp_path / "edited")
    with (edited / "layers.py").open("a") as file:
        file.write("# edited\n")
    with pytest.raises(Refused, match=r"holds checkpoints of another run: methods \("):
        rayd.run(words(edited, tmp_path / "out")[:-1], out=tmp_path / "out", methods=edited).result()
    assert command("distill", words(edited, tmp_path / "out")) == 2
    assert "of another run: methods (" in capsys.readouterr().err
    with pytest.raises(Refused, match=r"the code that the artifact was made with"):
        rayd.load(distilled / "artifact", methods=edited)
    assert command("evaluate", [*words(edited, distilled), "recipe.seeds=1", "controls=false"]) == 2
    assert "restore the folder as it was" in capsys.readouterr().err
    rest = rayd.run(words(mine, tmp_path / "out")[:-1], out=tmp_path / "out", methods=mine)
    assert [step.number for step in rest] == [3, 4, 5, 6], "from the checkpoint of step 2"
    experts = ["method=mtt", "method.objective.inner_steps=2", "method.objective.last=1", "expert.experts=1"]
    line = [*words(mine, tmp_path / "mtt"), *experts, "expert.epochs=3", "expert.compiled=false"]
    assert command("experts", line) == 0
    assert command("experts", [word.replace(str(mine), str(edited)) for word in line]) != 0
    assert "methods: the buffer has" in capsys.readouterr().err


def test_names_of_ours_and_of_nobody_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("NETS = {'vit': None}\n")
    with pytest.raises(Refused, match=r"methods NETS=vit: allowed is a name that is not taken"):
        rayd.plan("smoke", methods=tmp_path)
    with pytest.raises(Refused, match=r"net\.name=flat: allowed is convnet"):
        rayd.plan("smoke", net={"name": "flat"})
    with pytest.raises(Refused, match=r"data\.name=npz: allowed is digits"):
        rayd.plan("smoke", data={"name": "npz"})
    with pytest.raises(Refused, match=r"augment\.ops\[0\]=fade: allowed is color"):
        rayd.plan("smoke", expert={"augment": {"ops": ["fade"]}})
    (tmp_path / "a.py").write_text("CODECS = {'x': 1}\n")
    (tmp_path / "b.py").write_text("CODECS = {'x': 2}\n")
    with pytest.raises(Refused, match=r"b\.py CODECS=x"):
        plugins.load(str(tmp_path))


def test_a_method_to_begin_with_passes_its_own_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.new import main

    assert main(["method", "two_moments", f"to={tmp_path / 'mine'}"]) == 0
    test = tmp_path / "mine" / "test_two_moments.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(rayd.__file__).parents[1])},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout[-3000:]
    assert main(["method", "two_moments", f"to={tmp_path / 'mine'}"]) == 2
    for wrong, says in (("mtt", "not taken"), ("Two", "small letters"), ("test_x", "small letters")):
        assert main(["method", wrong, f"to={tmp_path / 'other'}"]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
