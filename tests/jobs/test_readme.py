"""What the README tells people to type, typed: every command and the Python of it, in one folder, in order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", TEXT, flags=re.M | re.S)


def typed(words: list[str], cwd: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert TEXT.count("\n") < 150
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_every_command_does_what_it_says(tmp_path: Path) -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    assert len(lines) >= 5
    for line in lines:
        python, *words = shlex.split(line)
        assert python == "python", line
        assert typed([sys.executable, *words], tmp_path), line
    for code in blocks("python"):
        typed([sys.executable, "-c", code + "\nassert len(images) == len(labels) > 0"], tmp_path)


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"\bmake ([a-z]+)", TEXT))
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets <= set(re.findall(r"make ([a-z]+)", listed))
