"""examples/: scripts are understood by their jobs, and all of them run; the notebook's cells run in order."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.compose import Asked, ask
from rayd.artifact.export import export
from rayd.data.images import Spec
from rayd.data.load import load
from rayd.studies.continual.memory import check
from tests.support.runs import an_artifact, digits_run

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOK = json.loads((EXAMPLES / "notebook.ipynb").read_text())
RECORD = '#!/bin/bash\n{ printf "%s\\n" "$@"; echo; } > "$TOLD/$(date +%s%N)-$$"\n'


def commands(script: str, folder: Path, *arguments: str) -> list[list[str]]:
    """The words behind every `python` that the script calls; none is run."""
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(RECORD)
    python.chmod(0o755)
    told = folder / "told"
    told.mkdir()
    env = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "TOLD": str(told)}
    subprocess.run(["bash", str(EXAMPLES / script), *arguments], cwd=folder, env=env, check=True, timeout=60)
    return [path.read_text().split("\n")[:-2] for path in sorted(told.iterdir())]


def asked(line: list[str]) -> Asked:
    _, job, *words = line
    return ask(job.removeprefix("jobs."), tuple(words), getattr(importlib.import_module(job), "KEYS", ""))


def ran(words: list[str], folder: Path, timeout: float = 900) -> str:
    """A script, with this Python before all others."""
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"  # no link: beside one Python finds no packages
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "HF_HOME": str(folder / "hf")}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_the_imagenette_table(tmp_path: Path) -> None:
    said = commands("imagenette.sh", tmp_path, "/shared/nette")
    assert [words[1] for words in said[:2]] == ["jobs.prepare", "jobs.experts"] and len(said) == 2 + 5 * 3
    runs = {(line[1].removeprefix("jobs."), one.run.out): one.run for line in said for one in [asked(line)]}
    distilled = [run for (verb, _), run in runs.items() if verb == "distill"]
    assert {run.experts_at for run in runs.values()} == {"/shared/nette/experts"}
    assert {run.data.path for run in distilled} == {"/shared/nette/data"}
    assert sorted(run.method.part_names[0] for run in distilled) == ["haba", "lodc", "lss", "nsd", "pixel"]
    assert all(runs["evaluate", run.out].method == run.method for run in distilled)


def test_the_sweep_shares_its_experts_and_goes_to_a_cluster_by_a_word(tmp_path: Path) -> None:
    experts, search = (asked(line) for line in commands("sweep.sh", tmp_path, "/shared/sweep", "scale=cluster"))
    assert experts.run.experts_at == search.run.experts_at == "/shared/sweep/experts"
    assert experts.run.scale.name == search.run.scale.name == "cluster"
    assert sorted(search.own.search.space) == ["method.optimiser.lr", "rank"]


def test_the_memories_of_continual_learning(tmp_path: Path) -> None:
    (only,) = (asked(line) for line in commands("continual.sh", tmp_path, "runs/c"))
    config = only.own.continual
    assert config.tasks == 5 and {"random", "herding", "nsd"} <= set(config.memories)
    for name in config.memories:
        check(name, config.memory(name), config.bytes_per_class, Spec((1, 8, 8), 10), 2)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("script", ["sweep.sh", "continual.sh"])
def test_a_script_runs(script: str, tmp_path: Path) -> None:
    assert "index.html" in ran(["bash", str(EXAMPLES / script), f"{tmp_path}/out"], tmp_path)


def test_a_consumer_needs_datasets_torch_and_pillow_alone(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    run = digits_run(tmp_path / "run", changes={"budget": {"ipc": 10}})
    export(str(an_artifact(tmp_path / "artifact", run)), str(tmp_path / "set"))
    test = load(run.data).test
    rows = [{"bytes": png(pixels[0].numpy()), "path": "one.png"} for pixels in test.pixels_NCHW[:]]
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}}}
    table = pa.table({"image": rows, "label": test.labels_N.tolist()})
    (tmp_path / "test").mkdir()
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "test" / "test.parquet"
    )
    said = ran([sys.executable, str(EXAMPLES / "consumer.py"), f"{tmp_path}/set", f"{tmp_path}/test"], tmp_path)
    assert said.startswith("100 images, 300 steps: test accuracy ") and float(said.split()[-2]) > 70
    assert "rayd" not in (EXAMPLES / "consumer.py").read_text().split('"""')[2]


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


@pytest.mark.slow
def test_a_researcher_needs_neither_ray_nor_hydra(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['researcher.py', 'out']\n"
        f"runpy.run_path({str(EXAMPLES / 'researcher.py')!r}, run_name='__main__')\n"
        "assert not {'ray', 'hydra', 'omegaconf'} & set(sys.modules), 'machinery'"
    )
    said = ran([sys.executable, "-c", code], tmp_path)
    assert "random@floats" in said and "nsd + mtt" in said and "ten real images" in said
    assert len((EXAMPLES / "researcher.py").read_text().split('"""', 2)[2].strip().splitlines()) <= 45


def test_the_notebook_is_code_and_text_without_outputs() -> None:
    """Format 4, and every cell of code compiles; outputs are made by whoever runs it."""
    assert NOTEBOOK["nbformat"] == 4 and len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), "cell", "exec")
            assert cell["outputs"] == [] and cell["execution_count"] is None


SHORTER = {
    "demo method=nsd": "smoke method=nsd",
    '"steps": 60': '"steps": 2',
    '"experts": 3': '"experts": 1',
    '{"seeds": 3}': '{"seeds": 1, "steps": 5}',
    'recipe="quick"': 'recipe={"steps": 5}, seeds=1',
}
"""What makes the notebook a matter of seconds."""
SHOWN = """
import ast, json
space, shown = {}, []
for source in SOURCES:
    *body, last = ast.parse(source).body
    exec(compile(ast.Module(body, []), "cell", "exec"), space)
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([last], []), "cell", "exec"), space)
        continue
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), space)
    html = getattr(value, "_repr_html_", None)
    shown.append(html() if html else repr(value))
print(json.dumps(shown))
"""


@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["short", "whole"])
def test_the_cells_of_the_notebook_run(short: bool, tmp_path: Path) -> None:
    """In order, in one process; what a cell ends with is shown as a notebook would."""
    pytest.importorskip("sklearn")
    sources = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    for long, brief in SHORTER.items() if short else ():
        assert any(long in source for source in sources), long
        sources = [source.replace(long, brief) for source in sources]
    said = json.loads(ran([sys.executable, "-c", SHOWN.replace("SOURCES", repr(sources))], tmp_path).splitlines()[-1])
    assert any("<img" in one for one in said), "pictures"
    assert any("<table" in one and "random@floats" in one for one in said), "the table of controls"


@pytest.mark.slow
def test_the_notebook_is_executed_as_jupyter_does(tmp_path: Path) -> None:
    if importlib.util.find_spec("nbclient") is None or importlib.util.find_spec("ipykernel") is None:
        pytest.skip("nbclient and ipykernel are not installed: the cells are run by the test before this one")
    import nbclient
    import nbformat

    notebook = nbformat.reads(json.dumps(NOTEBOOK), as_version=4)
    nbformat.validate(notebook)
    where = {"metadata": {"path": str(tmp_path)}}
    os.environ["PYTHONPATH"] = str(ROOT)
    done = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    outputs = json.dumps([cell.get("outputs", []) for cell in done.cells])
    assert "image/png" in outputs or "<img" in outputs, "pictures"
    assert "it/s" in outputs or "s/it" in outputs or "%|" in outputs, "a bar of progress"
