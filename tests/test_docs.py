"""What the texts say exists, exists: links, files, functions, rooms; the hooks and the CI do what the Makefile does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [
    path
    for top in (".", "docs", "docs/results", "configs", "infra", "rayd/methods")
    for path in sorted((ROOT / top).glob("*.md"))
]
TOPS = ("rayd", "jobs", "configs", "infra", "tests", "docs", "examples", ".github", ".ci")
WALK = re.compile(r"^### ([^\n]+): (\d+) hops, (\d+) files, (\d+) times back\n(.*?)(?=^#|\Z)", flags=re.M | re.S)
HOP = re.compile(r"`([\w./]+\.py):([\w.]+)`")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def missing_links(path: Path) -> list[str]:
    """Relative links of a text that lead nowhere."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    return [link for link in links if "://" not in link and not (path.parent / link).exists()]


def missing_files(text: str) -> list[str]:
    """Paths of this repository, in backticks, that are not there. A placeholder in capitals (NAME) is no path."""
    names = [name.split(":")[0].rstrip("/") for name in re.findall(r"`([\w.][\w./*{},-]*)(?::[\w.]+)?`", text)]
    paths = [name for name in names if name.split("/")[0] in TOPS and "/" in name and not re.search(r"[A-Z]{3}", name)]
    return [name for name in paths if "*" not in name and not (ROOT / name).exists()]


def missing_functions(text: str) -> list[str]:
    """`path/file.py:Class.method` that the file does not define."""
    wrong = []
    for file, name in HOP.findall(text):
        path = ROOT / file
        if not path.is_file() or name not in defined(path):
            wrong.append(f"{file}:{name}")
    return wrong


def defined(path: Path) -> set[str]:
    """Functions, classes and methods of a file, nested functions under the name of what holds them."""
    found: set[str] = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + child.name)
                visit(child, f"{prefix}{child.name}.")
            else:
                visit(child, prefix)

    visit(ast.parse(path.read_text()), "")
    return found


def counted(files: list[str]) -> tuple[int, int, int]:
    """Hops (into another file), files and times back (into a file that was left before) of a chain."""
    entered = [here for before, here in zip(["", *files], files, strict=False) if here != before]
    return len(entered) - 1, len(set(entered)), len(entered) - len(set(entered))


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_links_files_and_functions_exist(path: Path) -> None:
    text = path.read_text()
    assert missing_links(path) == []
    assert missing_files(text) == []
    assert missing_functions(text) == []


def test_what_does_not_exist_is_noticed() -> None:
    assert missing_files("`rayd/distill/no_such.py` and `rayd/methods/NAME.py`") == ["rayd/distill/no_such.py"]
    assert missing_functions("`rayd/seeds.py:seed_of`, `rayd/seeds.py:no_such`") == ["rayd/seeds.py:no_such"]
    assert counted(["a", "a", "b", "a", "c"]) == (3, 3, 1)


def test_the_walks_are_counted_right() -> None:
    walks = WALK.findall((ROOT / "docs/design.md").read_text())
    assert len(walks) == 4
    for title, *numbers, chain in walks:
        files = [file for file, _ in HOP.findall(chain)]
        assert tuple(map(int, numbers)) == counted(files), f"{title}: the chain has {counted(files)}"


@pytest.mark.parametrize("text", ["README.md", "docs/design.md"])
def test_every_room_is_on_the_floor_plan(text: str) -> None:
    plan = re.search(r"^```\nrayd/\n(.*?)^```", (ROOT / text).read_text(), flags=re.M | re.S)
    assert plan, "a block that begins with rayd/"
    rooms = {
        path.stem for path in (ROOT / "rayd").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert {room for room in rooms - {"__init__", "__main__"} if not re.search(rf"\b{room}\b", plan[1])} == set()


def test_every_room_says_what_it_is() -> None:
    rooms = sorted((ROOT / "rayd").glob("*/__init__.py"))
    assert [name_of(path) for path in rooms if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_the_hooks_run_what_is_installed() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    for hook in repo["hooks"]:
        python, _, tool, *_ = hook["entry"].split()
        assert python == ".venv/bin/python"
        subprocess.run([sys.executable, "-m", tool, "--version"], check=True, capture_output=True, timeout=60)


def test_the_ci_runs_what_is_here() -> None:
    """The slim job's own script, which fails where the mathematics imports the machinery."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yaml").read_text())["jobs"]
    assert jobs["all"]["steps"][-1]["run"] == ".ci/run" and (ROOT / ".ci/run").is_file()
    script = jobs["slim"]["steps"][-1]["run"].split("<<'END'\n")[1].rsplit("END", 1)[0]
    for code, status in ((script, 0), (f"import pyarrow\n{script}", 1)):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == status, done.stderr[-2000:]


def test_the_citation_names_licence_and_title() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["license"] == "Apache-2.0" and cited["title"].startswith("rayd") and cited["authors"]
