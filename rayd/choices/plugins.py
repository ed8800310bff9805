"""Code of a folder of one's own: what its Python files add to rayd, loaded where the folder is named and nowhere else.

Every file of the folder may hold these dicts, of a name and what it stands for:

    CODECS  OBJECTIVES  TERMS    parts of a method, as in rayd.methods
    NETS                         net.name -> a Net, made of (NetConfig, Spec)
    FORMATS                      data.name -> read(files, config) -> Source, or None where the folder holds no such data
    AUGMENTATIONS                an operation of `augment.ops` -> rayd.data.augment.Operation
    CONTROLS                     KIND of a control KIND@BUDGET -> pick(features_ND, n): indices of one class, best first

Files import each other by `from . import NAME`. Tests (`test_*.py`) are neither loaded nor part of the identity. While a Run
is read, `known()` says what its folder adds; a config keeps what it found there, so that nothing looks it up later.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from rayd.errors import refuse


@dataclass(frozen=True)
class Plugins:
    """What a folder adds; empty where none is named."""

    codecs: Mapping[str, Any] = field(default_factory=dict)
    objectives: Mapping[str, Any] = field(default_factory=dict)
    terms: Mapping[str, Any] = field(default_factory=dict)
    nets: Mapping[str, Any] = field(default_factory=dict)
    formats: Mapping[str, Any] = field(default_factory=dict)
    augmentations: Mapping[str, Any] = field(default_factory=dict)
    controls: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    """sha256 of the folder's code."""
    folder: str | None = None


@dataclass(frozen=True)
class Own:
    """One thing of a folder, as a config keeps it."""

    thing: Any
    source: str
    folder: str


KINDS = tuple(one.name for one in fields(Plugins) if one.name not in ("source", "folder"))
NONE = Plugins()
_known: ContextVar[Plugins] = ContextVar("plugins", default=NONE)
_loaded: dict[tuple[Path, str], Plugins] = {}
"""By folder and source: a process runs the files once, so that equal configs have equal classes."""


def known() -> Plugins:
    """What the folder adds whose Run is being read."""
    return _known.get()


@contextmanager
def using(plugins: Plugins) -> Iterator[None]:
    token = _known.set(plugins)
    try:
        yield
    finally:
        _known.reset(token)


def load(folder: str | None) -> Plugins:
    """What the Python files of the folder hold; nothing where no folder is named."""
    if folder is None:
        return NONE
    place = Path(folder).expanduser().resolve()
    paths = code(place)
    if not any(path.parent == place for path in paths):
        raise refuse("methods", folder, f"a folder with Python files that hold {', '.join(map(str.upper, KINDS))}")
    source = str(source_hash(folder))
    if (place, source) not in _loaded:
        _loaded[place, source] = _read(place, [path for path in paths if path.parent == place], source)
    return _loaded[place, source]


def code(folder: Path) -> list[Path]:
    """The Python files below the folder; tests and hidden folders are left out."""

    def counts(name: Path) -> bool:
        hidden = any(part.startswith(".") for part in name.parts)
        return not hidden and "tests" not in name.parts and not name.name.startswith("test_")

    names = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return [folder / name for name in sorted(filter(counts, names))]


def source_hash(folder: str | None) -> str | None:
    """sha256 of the code in a folder of one's own: part of the identity of what is made with it."""
    if folder is None:
        return None
    place, total = Path(folder).expanduser().resolve(), hashlib.sha256()
    for path in code(place):
        name = path.relative_to(place).as_posix()
        total.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _read(place: Path, paths: list[Path], source: str) -> Plugins:
    """Run the files as modules of a package named by the source, and join their dicts."""
    package = ModuleType(f"rayd_own_{source[:12]}_{hashlib.sha256(str(place).encode()).hexdigest()[:6]}")
    package.__path__ = [str(place)]
    sys.modules[package.__name__] = package
    joined: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for path in paths:
        name = f"{package.__name__}.{path.stem}"
        if name not in sys.modules:
            _run(name, path)
        for kind in KINDS:
            for word, thing in getattr(sys.modules[name], kind.upper(), {}).items():
                if word in joined[kind]:
                    raise refuse(f"{path.name} {kind.upper()}", word, "a name that is not taken", "choose another name")
                joined[kind][word] = thing
    return Plugins(**joined, source=source, folder=str(place))


def _run(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise refuse("methods", path, "a readable Python file")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    whole = False
    try:
        spec.loader.exec_module(sys.modules[name])
        whole = True
    finally:
        if not whole:
            del sys.modules[name]


def joined(kind: str, ours: Mapping[str, Any], plugins: Plugins) -> dict[str, Any]:
    """Our names and those of the folder."""
    check_names(kind, ours, plugins)
    return {**ours, **getattr(plugins, kind)}


def own(kind: str, name: Any, ours: Collection[str]) -> Own | None:
    """What the folder whose Run is being read means by a name; None where it is not one of its names."""
    plugins = known()
    check_names(kind, ours, plugins)
    if not isinstance(name, str) or name not in getattr(plugins, kind):
        return None
    return Own(getattr(plugins, kind)[name], str(plugins.source), str(plugins.folder))


def check_names(kind: str, ours: Collection[str], plugins: Plugins) -> None:
    """Refuse a folder that takes a name of ours."""
    taken = sorted(set(ours) & set(getattr(plugins, kind)))
    if taken:
        raise refuse(f"methods {kind.upper()}", taken[0], "a name that is not taken", "choose another name")
