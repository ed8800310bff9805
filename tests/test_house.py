"""The plan of the house, held against the tree: floors, doors, file lengths, words that may not be said."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "seeds", "strict", "compiler", "png", "progress"),
    ("data", "sources", "transform", "augment", "nets", "layers", "zoo", "flat", "unroll", "budget", "store"),
    ("trajectory", "artifact", "birth", "card"),
    ("methods",),
    ("recipes", "feed", "expert", "sgd", "distill", "evaluate"),
    ("buffer", "shards", "world", "prepare"),
    ("config",),
    ("foundry", "setting", "run"),
    (
        "coreset",
        "exam",
        "controls",
        "robust",
        "verify",
        "export",
        "report",
        "plan",
        "search",
        "continual",
        "theory",
        "bench",
    ),
    ("fleet",),
    ("jobs",),
)
"""Bottom first. A module imports its own floor and those below, never above."""

DOORS: dict[str, tuple[str, ...]] = {
    "ray": ("rayd/fleet/",),
    "hydra": ("jobs/compose.py",),
    "omegaconf": ("jobs/compose.py",),
    "webdataset": ("rayd/shards.py", "rayd/export.py"),
    "pyarrow": ("rayd/store.py", "rayd/shards.py", "rayd/sources/", "rayd/search/trials.py", "rayd/export.py"),
    "torchvision": ("rayd/sources/bundled.py",),
    "sklearn": ("rayd/sources/bundled.py",),
    "PIL": ("rayd/sources/", "rayd/export.py", "rayd/exam.py"),
    "safetensors": ("rayd/artifact.py",),
    "matplotlib": ("rayd/report/",),
    "optuna": ("rayd/fleet/",),
}
"""Each outside package is imported behind one door."""

FORBIDDEN_CALLS = {
    "torch.load",
    "torch.save",
    "pickle.load",
    "pickle.loads",
    "pickle.dump",
    "pickle.dumps",
    "eval",
    "exec",
}
ALLOWED = {("rayd/export.py", "torch.save")}
"""The field's own scripts read images.pt and labels.pt: tensors only, for them to load with weights_only."""
FORBIDDEN_NAMES = {"utils", "common", "helpers", "misc"}
LONGEST = 330


def sources(*tops: str) -> list[Path]:
    return sorted(path for top in tops or ("rayd", "jobs") for path in (ROOT / top).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def floor_of(module: str) -> int:
    """Floor of `rayd.x.y` or `jobs.x`; the root package itself stands on the ground."""
    parts = module.split(".")
    room = parts[0] if parts[0] == "jobs" else (parts[1] if len(parts) > 1 else "")
    return next((level for level, rooms in enumerate(FLOORS) if room in rooms), -1)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, lazily too, and the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.level:
                raise AssertionError(f"{name_of(path)}:{node.lineno}: a relative import; write the whole name")
            if node.module in ("rayd", "jobs"):
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno


def climbs(path: Path) -> list[str]:
    """The upward imports of a file."""
    here = floor_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = [(name, line) for name, line in imports(path) if name.split(".")[0] in ("rayd", "jobs")]
    return [f"{name_of(path)}:{line} imports {name}, from above" for name, line in found if floor_of(name) > here >= 0]


def trespasses(path: Path) -> list[str]:
    """Outside packages imported elsewhere than through their door."""
    return [
        f"{name_of(path)}:{line} imports {name}; its door is {' or '.join(DOORS[name.split('.')[0]])}"
        for name, line in imports(path)
        if name.split(".")[0] in DOORS and not name_of(path).startswith(DOORS[name.split(".")[0]])
    ]


def test_every_module_has_a_floor() -> None:
    rooms = {
        path.stem if path.parent.name == "rayd" else path.relative_to(ROOT / "rayd").parts[0]
        for path in sources("rayd")
    }
    known = {room for floor in FLOORS for room in floor} | {"__init__"}
    assert rooms <= known, f"no floor in FLOORS for {sorted(rooms - known)}"


def test_imports_point_down() -> None:
    assert [line for path in sources() for line in climbs(path)] == []


def test_each_outside_package_has_one_door() -> None:
    assert [line for path in sources() for line in trespasses(path)] == []


def test_a_wrong_import_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    engine = tmp_path / "rayd" / "distill.py"
    engine.parent.mkdir()
    engine.write_text("import ray\nfrom rayd.fleet import train\nfrom rayd import config\n")
    assert len(trespasses(engine)) == 1
    assert len(climbs(engine)) == 2


def test_the_mathematics_loads_no_machinery() -> None:
    shut = ("ray", "hydra", "webdataset", "pyarrow", "torchvision", "omegaconf", "matplotlib", "PIL", "sklearn")
    code = f"import sys, rayd.distill.loop, rayd.methods\nprint([name for name in {shut!r} if name in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_manners(path: Path) -> None:
    """Short files, nothing pickled, nothing swallowed, nothing printed outside the jobs."""
    text = path.read_text()
    assert text.count("\n") <= LONGEST, f"{name_of(path)} has more than {LONGEST} lines: split it"
    assert path.stem not in FORBIDDEN_NAMES
    printing = name_of(path).startswith(("jobs/", "rayd/bench/"))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), (
                f"{name_of(path)}:{node.lineno} swallows {caught}"
            )
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in FORBIDDEN_CALLS or (name_of(path), called) in ALLOWED, (
                f"{name_of(path)}:{node.lineno} calls {called}"
            )
            assert printing or called != "print", f"{name_of(path)}:{node.lineno} prints"
            if called.endswith(("manual_seed", "random.seed")):
                assert called not in ("torch.manual_seed", "random.seed", "np.random.seed"), (
                    f"{name_of(path)} seeds the globe"
                )


def test_nothing_names_a_workplace() -> None:
    """No absolute path of somebody's machine, in code, configs or texts."""
    kinds = {".py", ".yaml", ".yml", ".md", ".toml", ".txt", ".json", ""}
    tops = [ROOT / top for top in ("rayd", "jobs", "configs", "infra", "tests")]
    files = [p for top in tops if top.is_dir() for p in top.rglob("*")] + [
        p for p in ROOT.iterdir() if p.name != ".git"
    ]
    names = ("/wor" + "k/", "/roo" + "t/", "/hom" + "e/")
    for path in files:
        if path.is_file() and path.suffix in kinds and path != Path(__file__):
            text = path.read_text(errors="ignore")
            assert not [name for name in names if name in text], name_of(path)
