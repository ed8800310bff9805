"""The plan of the house, held against the tree: rooms, circles, doors, file lengths, words that may not be said."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROOMS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("schema", "choices"),
    ("seeds", "numbers", "machine", "store"),
    ("data",),
    ("nets",),
    ("experts", "evaluate"),
    ("distill",),
    ("methods",),
    ("artifact", "config"),
    ("run",),
    ("report",),
    ("studies",),
    ("fleet", "api"),
    ("jobs",),
)
"""In the order of the flow: a room imports itself and what stands before it, not its neighbours on the same floor."""

DOORS: dict[str, tuple[str, ...]] = {
    "ray": ("rayd/fleet/",),
    "hydra": ("jobs/compose.py",),
    "omegaconf": ("jobs/compose.py",),
    "webdataset": ("rayd/experts/",),
    "pyarrow": (
        "rayd/store/",
        "rayd/experts/",
        "rayd/data/sources/",
        "rayd/studies/search/",
        "rayd/artifact/export.py",
    ),
    "torchvision": ("rayd/data/sources/bundled.py",),
    "sklearn": ("rayd/data/sources/bundled.py",),
    "PIL": ("rayd/data/sources/",),
    "safetensors": ("rayd/distill/budget.py", "rayd/data/sources/tensors.py"),
    "matplotlib": ("rayd/report/",),
    "yaml": ("rayd/choices/",),
    "tqdm": ("rayd/api/work.py",),
}
"""Each outside package is imported behind its doors, and every door is used."""

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
ALLOWED = {("rayd/artifact/export.py", "torch.save")}
"""The field's own scripts read images.pt and labels.pt: tensors only, for them to load with weights_only."""
FORBIDDEN_NAMES = {"utils", "common", "helpers", "misc"}
LONGEST = 330


def sources(*tops: str) -> list[Path]:
    return sorted(path for top in tops or ("rayd", "jobs") for path in (ROOT / top).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The part directly below `rayd`, or `jobs`; empty for the root package."""
    parts = module.split(".")
    return "jobs" if parts[0] == "jobs" else parts[1] if len(parts) > 1 and parts[1] != "__main__" else ""


def floor_of(module: str) -> int:
    """Place of a module's room in the flow; -1 for the root package and what is in no room."""
    return next((floor for floor, rooms in enumerate(ROOMS) if room_of(module) in rooms), -1)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, lazily and for type checking too, and the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.level:
                raise AssertionError(f"{name_of(path)}:{node.lineno}: a relative import; write the whole name")
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if is_module(whole) else node.module, node.lineno


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def climbs(path: Path) -> list[str]:
    """Imports of a room that does not stand before the file's own."""
    here = module_of(path)
    return [
        f"{name_of(path)}:{line} imports {name}, which does not stand before {room_of(here)}"
        for name, line in imports(path)
        if name.split(".")[0] in ("rayd", "jobs")
        and room_of(name) != room_of(here)
        and floor_of(name) >= floor_of(here) >= 0
    ]


def circle() -> list[str]:
    """Files that import each other in a circle; none where there is none."""
    graph = {
        module_of(path): {name for name, _ in imports(path) if name.startswith("rayd")} for path in sources("rayd")
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def unused_doors() -> list[str]:
    """Doors that nobody walks through."""
    walked = {(name.split(".")[0], name_of(path)) for path in sources() for name, _ in imports(path)}
    return [
        f"{package}: {door}"
        for package, doors in DOORS.items()
        for door in doors
        if not any(outside == package and file.startswith(door) for outside, file in walked)
    ]


def trespasses(path: Path) -> list[str]:
    """Outside packages imported elsewhere than through their door."""
    return [
        f"{name_of(path)}:{line} imports {name}; its door is {' or '.join(DOORS[name.split('.')[0]])}"
        for name, line in imports(path)
        if name.split(".")[0] in DOORS and not name_of(path).startswith(DOORS[name.split(".")[0]])
    ]


def test_every_part_has_a_room() -> None:
    parts = {room_of(module_of(path)) for path in sources()} - {""}
    assert parts == {room for floor in ROOMS for room in floor}
    assert len(parts - {"jobs"}) <= 20 and len(ROOMS) <= 14


def test_imports_follow_the_flow() -> None:
    assert [line for path in sources() for line in climbs(path)] == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle() == []


def test_each_outside_package_has_its_doors_and_every_door_is_used() -> None:
    assert [line for path in sources() for line in trespasses(path)] == []
    assert unused_doors() == []


def planted(folder: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", folder)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return [folder / name for name in files]


def test_an_upward_import_is_caught_where_it_is_lazy_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, score = planted(
        tmp_path,
        {
            "rayd/distill/loop.py": "from rayd.store import Store\ndef later():\n    from rayd import config\n",
            "rayd/evaluate/score.py": "import rayd.experts.buffer\n",
            "rayd/config/__init__.py": "",
            "rayd/store.py": "",
        },
        monkeypatch,
    )[:2]
    assert len(climbs(loop)) == 1 and "imports rayd.config" in climbs(loop)[0]
    assert len(climbs(score)) == 1, "neighbours on one floor do not know each other"


def test_a_circle_for_type_checking_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "rayd/experts/train.py": "from rayd.experts.step import ExpertStep\n",
        "rayd/experts/step.py": "if TYPE_CHECKING:\n    from rayd.experts.train import train\n",
    }
    planted(tmp_path, files, monkeypatch)
    assert set(circle()) == {"rayd.experts.train", "rayd.experts.step"}
    (tmp_path / "rayd/experts/step.py").write_text("")
    assert circle() == []


def test_a_package_beside_its_door_and_a_door_nobody_uses_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (engine,) = planted(tmp_path, {"rayd/distill/loop.py": "import ray\n"}, monkeypatch)
    assert len(trespasses(engine)) == 1
    assert "ray: rayd/fleet/" in unused_doors()
    planted(tmp_path, {"rayd/fleet/cluster.py": "def start():\n    import ray\n"}, monkeypatch)
    assert "ray: rayd/fleet/" not in unused_doors()


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
    printing = name_of(path).startswith(("jobs/", "rayd/studies/bench/", "rayd/__main__.py"))
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
    tops = [ROOT / top for top in ("rayd", "jobs", "configs", "infra", "tests", "docs", "examples", ".github")]
    files = [p for top in tops if top.is_dir() for p in top.rglob("*")] + [
        p for p in ROOT.iterdir() if p.name != ".git"
    ]
    names = ("/wor" + "k/", "/roo" + "t/", "/hom" + "e/")
    for path in files:
        if path.is_file() and path.suffix in kinds and path != Path(__file__):
            text = path.read_text(errors="ignore")
            assert not [name for name in names if name in text], name_of(path)


@pytest.mark.parametrize(
    "room", [ROOT / "jobs", *sorted(path.parent for path in (ROOT / "rayd").rglob("__init__.py"))], ids=name_of
)
def test_the_docstring_of_a_room_names_all_that_is_in_it(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    parts = {p.stem for p in room.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    absent = [part for part in parts if not part.startswith("__") and not re.search(rf"\b{part}\b", text)]
    assert not absent, f"{name_of(room)}/__init__.py: no line for {absent}"
