"""The choices under configs/, and how a preset, choices and changes become plain values, without Hydra.

The files are read as Hydra reads them on the command line: the defaults list of `run.yaml`, `override /GROUP: NAME` in a
preset, pieces named by path, and whatever stands in a file over what its defaults say.

plugins    code of a folder of one's own: codecs, objectives, networks and other choices that are not files of configs/
verb       a room that can be called
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from rayd.errors import Refused, refuse

HERE = Path(__file__).resolve().parents[1]
CONFIGS = HERE / "configs" if (HERE / "configs").is_dir() else HERE.parent / "configs"
"""In the package of a wheel, beside it in a checkout."""
GROUPS = ("preset", "data", "net", "expert", "method", "recipe", "scale")
PATHS = ("out", "buffer", "scores", "methods", "data.path", "to", "artifact", "verify")
"""Keys that hold a path or URI: made absolute before anything else sees them, since workers live in other folders."""
Changes = list[tuple[str, Any]]
"""Keys (`method.steps`) and their values, in order."""


# ---- the choices of a group ----------------------------------------------------------------------------------------


def places(folder: str | None) -> list[Path]:
    """Where choices are looked for: ours, and a folder of one's own."""
    return [CONFIGS] + ([Path(folder).expanduser().resolve()] if folder not in (None, "null") else [])


def options(group: str, place: Path = CONFIGS) -> list[str]:
    """The choices of a group: its YAML files, by path; names that start with an underscore are pieces of others."""
    root = place / group
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not Path(name).name.startswith("_"))


def check_choice(group: str, name: str, where: Sequence[Path]) -> None:
    """Refuse a choice that is no file of the group."""
    known = sorted({option for place in where for option in options(group, place)})
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise refuse(group, name, " | ".join(_related(name, known)), f"did you mean {near[0]}?" if near else "")


def _related(value: str, known: Sequence[str]) -> list[str]:
    """The cells of the family that was meant, or the families."""
    cells = [name for name in known if name.startswith(value.split("/")[0] + "/")]
    return cells or list(dict.fromkeys(name.split("/")[0] + ("/..." if "/" in name else "") for name in known))


def check_family(preset: str, method: str, of_preset: str) -> None:
    """A preset of one method says nothing about another: FAMILY/CELL is refused beside the method of another family."""
    if "/" in preset and method != of_preset:
        allowed = f"{of_preset}, which preset={preset} is for"
        raise refuse("method", method, allowed, "drop one of the two words, or take preset=cpu")


def follows(words: Sequence[str]) -> bool:
    """Whether the run's settings follow from the data: data of one's own, and no preset that says otherwise."""
    return "data=folder" in words and not any(word.startswith("preset=") for word in words)


# ---- words and changes ---------------------------------------------------------------------------------------------


def changes_of(words: str | Sequence[str]) -> Changes:
    """`preset=demo method.steps=50`, as on the command line; a single word without a sign is a preset."""
    listed = shlex.split(words) if isinstance(words, str) else list(words)
    if listed and "=" not in listed[0]:
        listed[0] = f"preset={listed[0]}"
    changes: Changes = []
    for word in listed:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise refuse("words", word, "a preset first, then KEY=VALUE")
        key = key.lstrip("+")
        plain = value if key in PATHS and value != "null" else read(value, word)
        if key in GROUPS and isinstance(plain, dict):
            changes.append((f"~{key}", None))
        changes.append((key, plain))
    return changes


Follow = Callable[[Mapping[str, Any], Collection[str], bool], Sequence[Any]]
"""Settings (key, value) that follow from the data of a run, less the keys that were said; whether all or those of data."""


def compose(changes: Changes, folder: str | None = None, follow: Follow | None = None) -> dict[str, Any]:
    """`run.yaml`, the choices, a preset and the changes joined into plain values. A text chooses a file of a group, a
    mapping changes keys, and `~GROUP` leaves the file out. `follow`: what follows from the data."""
    where = places(folder)
    chosen = {key: value for key, value in changes if key in GROUPS and isinstance(value, str)}
    if follow and follows([f"{group}={name}" for group, name in chosen.items()]):
        chosen["preset"] = "own"
    for group, name in chosen.items():
        check_choice(group, name, where)
    bare = {key[1:] for key, _ in changes if key.startswith("~")}
    rest = [(key, value) for key, value in changes if key[0] != "~" and not (key in GROUPS and isinstance(value, str))]
    tree, choices = _joined(chosen, bare, where)
    if "preset" in chosen and "method" in chosen:
        check_family(chosen["preset"], chosen["method"], choices["method"])
    whole = changed(tree, rest)
    objective = (whole.get("method") or {}).get("objective") or {}
    section = (tree.get("by_objective") or {}).get(objective.get("name"))
    tree = merged(tree, section or {})
    whole = changed(tree, rest)
    if follow:
        settings = follow(whole, set(_said(changes)), chosen.get("preset") == "own")
        whole = changed(tree, [*((setting.key, setting.value) for setting in settings), *rest])
    whole.pop("by_objective", None)
    return {key: _resolved(value, whole) for key, value in whole.items()}


def _said(changes: Changes) -> Iterator[str]:
    """The keys that are changed; a mapping for a group changes those that it holds, and chooses no file."""
    whole = {key[1:] for key, _ in changes if key.startswith("~")}
    for key, value in changes:
        if isinstance(value, Mapping) and key.split(".")[0] in set(GROUPS) - whole:
            yield from _said([(f"{key}.{inner}", deeper) for inner, deeper in value.items()])
        elif key[0] != "~":
            yield key


def _joined(
    chosen: Mapping[str, str], bare: Collection[str], where: Sequence[Path]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Root, choices and preset, and what the preset chooses of every group."""
    root, body = _defaults(_file("run", where))
    choices = {group: name for entry in root for group, name in entry.items()}
    preset: dict[str, Any] = {}
    if "preset" in chosen:
        overrides, preset = _preset(f"preset/{chosen['preset']}", where)
        choices |= overrides
    tree: dict[str, Any] = {}
    for group, name in {**choices, **{group: name for group, name in chosen.items() if group != "preset"}}.items():
        if group not in bare:
            tree[group] = _choice(group, name, where)
    return merged(merged(tree, body), preset), choices


def choice(group: str, name: str, folder: str | None = None) -> dict[str, Any]:
    """A choice of a group, as a mapping."""
    where = places(folder)
    check_choice(group, name, where)
    return _choice(group, name, where)


def _choice(group: str, name: str, where: Sequence[Path]) -> dict[str, Any]:
    """A file of a group over those that its defaults name."""
    defaults, body = _defaults(_file(f"{group}/{name}", where))
    below: dict[str, Any] = {}
    for entry in defaults:
        below = merged(below, _choice(group, str(entry), where))
    return merged(below, body)


def _preset(name: str, where: Sequence[Path]) -> tuple[dict[str, str], dict[str, Any]]:
    """The choices of a preset and its body, each over those of its pieces."""
    defaults, body = _defaults(_file(name, where))
    overrides: dict[str, str] = {}
    below: dict[str, Any] = {}
    for entry in defaults:
        if isinstance(entry, str):
            chosen, piece = _preset(entry.lstrip("/"), where)
            overrides, below = {**overrides, **chosen}, merged(below, piece)
        else:
            overrides |= {key.split("/")[-1]: value for key, value in entry.items()}
    return overrides, merged(below, body)


def _defaults(plain: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The defaults list of a file, itself left out, and the rest of it."""
    listed = [entry for entry in plain.get("defaults", ()) if entry != "_self_"]
    return listed, {key: value for key, value in plain.items() if key != "defaults"}


def changed(tree: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The tree with these keys changed."""
    whole = deepcopy(dict(tree))
    for key, value in changes:
        *parents, last = key.split(".")
        holder = whole
        for parent in parents:
            if not isinstance(holder.get(parent), dict):
                holder[parent] = {}
            holder = holder[parent]
        old = holder.get(last)
        holder[last] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return whole


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, the second over the first; mappings are joined, all else is replaced."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else deepcopy(value)
    return both


def _resolved(value: Any, whole: Mapping[str, Any]) -> Any:
    """`${a.b}` replaced by what stands there."""
    if isinstance(value, Mapping):
        return {key: _resolved(inner, whole) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(inner, whole) for inner in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    names = re.findall(r"\$\{([\w.]+)\}", value)
    found = {name: _at(whole, name) for name in names}
    if value == f"${{{names[0]}}}":
        return found[names[0]]
    return re.sub(r"\$\{([\w.]+)\}", lambda match: str(found[match[1]]), value)


def _at(whole: Mapping[str, Any], path: str) -> Any:
    value: Any = whole
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def absolute(mapping: dict[str, Any]) -> None:
    """Make the paths absolute; a submitted job has to be given such paths."""
    scale = mapping.get("scale")
    for path in PATHS:
        *parents, key = path.split(".")
        holder: Any = mapping
        for parent in parents:
            holder = holder.get(parent) if isinstance(holder, dict) else None
        value = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(value, str) or not value or "://" in value or value.startswith("zoo:"):
            continue
        expanded = os.path.expanduser(value)
        submitted = isinstance(scale, dict) and scale.get("name") == "cluster"
        if submitted and path in ("out", "buffer", "scores") and not os.path.isabs(expanded):
            where = "an absolute path every node sees, or a URI"
            raise refuse(path, value, where, f"a submitted job runs in a folder that is thrown away: {path}=/...")
        holder[key] = os.path.abspath(expanded)


# ---- YAML ----------------------------------------------------------------------------------------------------------


def _file(name: str, where: Sequence[Path]) -> dict[str, Any]:
    path = next((place / f"{name}.yaml" for place in where if (place / f"{name}.yaml").is_file()), None)
    if path is None:
        raise refuse("configs", name, f"a YAML file under {' or '.join(map(str, where))}", "install rayd again")
    plain = read(path.read_text(encoding="utf-8"), str(path))
    return plain if isinstance(plain, dict) else {}


@cache
def _loader() -> type[Any]:
    """PyYAML's safe one, with numbers and truth values as Hydra reads them: 1e-7 is a number, `no` is a text."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    kept: dict[str, list[Any]] = {}
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
        kept[letter] = [(tag, rule) for tag, rule in resolvers if not tag.endswith((":bool", ":timestamp", ":float"))]
    Loader.yaml_implicit_resolvers = kept
    number = (
        r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*(?:[eE][-+]?\d+)?|\.?(?:inf|nan))$"
    )
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(number, re.I), list("-+0123456789.iInN"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.I), list("tTfF"))
    return Loader


def read(text: str, what: str) -> Any:
    """The value of a YAML text."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())  # a SafeLoader
    except yaml.YAMLError as error:
        lines: Iterator[str] = (line.strip() for line in str(error).splitlines() if line.strip())
        raise Refused(f"{what}: {next(lines, 'not YAML')}; values with special signs in quotes") from error
