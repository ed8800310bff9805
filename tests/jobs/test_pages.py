"""What README and docs/ tell people to type, typed: a page is a session in one folder, its blocks run in order.

```bash      `python ...` is run; of other lines (pip, ray, make) each `python -m jobs.VERB` is composed
```python    is run; one that begins with `# file: PATH` is written there, and so is ```yaml
```          output or a sketch; each `python -m jobs.VERB` in it is composed
<!-- slow --> before a block: it is run by the long rounds only, and composed always
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.compose import ask
from tests.support.odd import plain

ROOT = Path(__file__).resolve().parents[2]
ABOUT_THE_CODE = {"design.md", "reading.md", "glossary.md"}
DOCS = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in ABOUT_THE_CODE]
PAGES = [ROOT / "README.md", ROOT / "artifacts" / "README.md", *DOCS]
BLOCK = re.compile(r"^(<!-- slow -->\n)?```(\w*)\n(.*?)^```$", flags=re.M | re.S)
NO_RUN = {"bench", "new", "presets", "zoo"}
"""Modules of jobs/ that compose no run."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    slow: bool
    kind: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(bool(slow), kind, text) for slow, kind, text in BLOCK.findall(page.read_text())]


def commands(block: Block) -> list[list[str]]:
    """The lines of a block of the shell, as words."""
    text = block.text.replace("\\\n", " ")
    shared = (re.findall(r'^W="([^"]*)"', text, flags=re.M) or [""])[-1]
    lines = [line for line in text.replace("$W", shared).splitlines() if line.strip()]
    lines = lines if block.kind else [line for line in lines if "python -m" in line]
    return [shlex.split(line, comments=True) for line in lines]


def jobs_of(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Every `python -m jobs.VERB` of a block, and its words."""
    for words in commands(block):
        for i, word in enumerate(words):
            if word.startswith("jobs.") and words[i - 1] == "-m":
                verb, rest = word.removeprefix("jobs."), words[i + 1 :]
                yield (rest[0], rest[1:]) if verb == "submit" else (verb, rest)


def typed(words: list[str], folder: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def write(block: Block, folder: Path) -> bool:
    """A block that is a file: written; whether it was one."""
    named = re.match(r"# file: (\S+)\n", block.text)
    if named:
        path = folder / named[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    return bool(named)


def session(page: Path, folder: Path, slow: bool) -> None:
    plain(folder / "pictures", {"circle": 40, "cross": 40, "square": 40})
    for block in blocks(page):
        if write(block, folder) or (block.slow and not slow):
            continue
        if block.kind == "bash":
            for words in commands(block):
                if words[0] == "python":
                    assert typed([sys.executable, *words[1:]], folder), words
        elif block.kind == "python":
            typed([sys.executable, "-c", block.text], folder)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain(tmp_path / "pictures", {"circle": 40, "cross": 40, "square": 40})
    (tmp_path / "mine.safetensors").symlink_to(tmp_path / "pictures")
    count = 0
    for block in blocks(page):
        write(block, tmp_path)
        for verb, words in jobs_of(block) if block.kind in ("", "bash") else ():
            count += 1
            if verb not in NO_RUN and "--help" not in words:
                keys = getattr(importlib.import_module(f"jobs.{verb}"), "KEYS", "")
                ask(verb, tuple(word for word in words if word != "--cfg"), keys)
    assert count >= 1 or page.parent != ROOT / "docs", "a page leads somewhere"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_light_runs(page: Path, tmp_path: Path) -> None:
    session(page, tmp_path, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_everything_runs(page: Path, tmp_path: Path) -> None:
    session(page, tmp_path, slow=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_kind_that_is_checked(page: Path) -> None:
    kinds = {block.kind for block in blocks(page)}
    assert kinds <= {"", "bash", "python", "yaml"}
    fences = len(re.findall(r"^```", page.read_text(), flags=re.M))
    assert fences == 2 * len(blocks(page)), "every fence belongs to a block"
    assert all(block.kind != "yaml" or block.text.startswith("# file: ") for block in blocks(page))


def test_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") < 150
    assert [name_of(page) for page in PAGES[1:] if f"({name_of(page)})" not in text] == []


def test_make_targets_are_there() -> None:
    said = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"(?:^|`)make ([a-z]+)\b", said, flags=re.M))
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets and targets <= set(re.findall(r"make ([a-z]+)", listed))
