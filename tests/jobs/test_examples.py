"""What examples/ submits: every command in it is understood by its job, with one buffer and one place for all."""

from __future__ import annotations

import importlib
import os
import subprocess
from pathlib import Path

from jobs.compose import ask

ROOT = Path(__file__).resolve().parents[2]
RECORD = '#!/bin/bash\n{ printf "%s\\n" "$@"; echo; } > "$TOLD/$(date +%s%N)-$$"\n'


def commands(script: str, out: str, folder: Path) -> list[list[str]]:
    """The words behind every `python` that the script calls; none is run."""
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(RECORD)
    python.chmod(0o755)
    told = folder / "told"
    told.mkdir()
    env = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "TOLD": str(told)}
    subprocess.run(["bash", str(ROOT / "examples" / script), out], cwd=folder, env=env, check=True, timeout=60)
    return [path.read_text().split("\n")[:-2] for path in sorted(told.iterdir())]


def test_the_imagenette_table(tmp_path: Path) -> None:
    said = commands("imagenette.sh", "/shared/nette", tmp_path)
    assert [words[1] for words in said[:2]] == ["jobs.prepare", "jobs.experts"] and len(said) == 2 + 5 * 3
    runs = {}
    for _, job, *words in said:
        module, verb = importlib.import_module(job), job.removeprefix("jobs.")
        asked = ask(verb, tuple(words), getattr(module, "KEYS", ""))
        runs[verb, asked.run.out] = asked.run
    distilled = [run for (verb, _), run in runs.items() if verb == "distill"]
    assert {run.experts_at for run in runs.values()} == {"/shared/nette/experts"}
    assert {run.data.path for run in distilled} == {"/shared/nette/data"}
    assert sorted(run.method.part_names[0] for run in distilled) == ["haba", "lodc", "lss", "nsd", "pixel"]
    assert all(runs["evaluate", run.out].method == run.method for run in distilled)
