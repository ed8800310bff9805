"""What the command line says of itself: choices, presets, keys beside the docstrings of their fields.

Docstrings are read from the sources with `ast`, so that help imports nothing that it describes.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import rayd
from jobs import program
from jobs.compose import CONFIGS, GROUPS, options

HERE = Path(__file__).resolve().parent
ROOT = Path(rayd.__file__).resolve().parent
"""Of the package: its sources are read, none is imported."""
WIDTH, COLUMN = 118, 36
WORDS = {"codec": "CODECS", "objective": "OBJECTIVES", "terms": "TERMS"}
"""Parts of a method, and the dict of rayd.methods that names their classes."""
PLAIN = {"None": "null", "True": "true", "False": "false"}


@dataclass(frozen=True)
class Key:
    """A field of a dataclass, as its source has it."""

    kind: str
    default: str
    doc: str


@dataclass(frozen=True)
class Source:
    """What one file says: its docstring, classes by qualified name (bases, keys), and dict literals name -> class."""

    doc: str
    classes: Mapping[str, tuple[tuple[str, ...], Mapping[str, Key]]]
    dicts: Mapping[str, Mapping[str, str]]


@cache
def source(path: Path) -> Source:
    tree = ast.parse(path.read_text())
    return Source(ast.get_docstring(tree) or "", dict(_classes(tree.body, "")), dict(_dicts(tree.body)))


def _classes(body: Sequence[ast.stmt], outer: str) -> Iterator[tuple[str, tuple[tuple[str, ...], dict[str, Key]]]]:
    for node in body:
        if not isinstance(node, ast.ClassDef):
            continue
        keys: dict[str, Key] = {}
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                kind, default = ast.unparse(field.annotation), "" if field.value is None else ast.unparse(field.value)
                if "ClassVar" not in kind and "DERIVED" not in default:
                    keys[field.target.id] = Key(kind, "" if "(" in default else default, _text(after))
        yield f"{outer}{node.name}", (tuple(map(ast.unparse, node.bases)), keys)
        yield from _classes(node.body, f"{outer}{node.name}.")


def _text(node: ast.stmt | None) -> str:
    """The string that a statement is, in one line."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def _dicts(body: Sequence[ast.stmt]) -> Iterator[tuple[str, dict[str, str]]]:
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict) and isinstance(node.target, ast.Name):
            pairs = zip(node.value.keys, node.value.values, strict=True)
            yield node.target.id, {str(k.value): ast.unparse(v) for k, v in pairs if isinstance(k, ast.Constant)}


@cache
def everything() -> tuple[dict[str, Path], dict[str, Mapping[str, str]]]:
    """Where each class of rayd is, and the dicts of a method's parts."""
    classes: dict[str, Path] = {}
    for path in sorted(path for path in ROOT.rglob("*.py") if path.parent != HERE):
        classes |= dict.fromkeys(source(path).classes, path)
    methods = source(ROOT / "methods" / "__init__.py").dicts
    dicts = {name: methods[name] for name in WORDS.values()}
    return classes, dicts


def keys_of(name: str, path: Path | None = None) -> dict[str, Key]:
    """The keys of a class and its bases, the bases' first."""
    where = path or everything()[0].get(name)
    if where is None:
        return {}
    if name not in source(where).classes:  # a Config that the outer class inherits
        outer, _, inner = name.rpartition(".")
        bases = source(where).classes.get(outer, ((), {}))[0]
        return next((keys for base in bases if (keys := keys_of(f"{base}.{inner}"))), {})
    bases, own = source(where).classes[name]
    inherited: dict[str, Key] = {}
    for base in bases:
        inherited |= keys_of(base)
    return {**inherited, **own}


def answer(verb: str, doc: str, keys: str, words: Sequence[str]) -> str:
    """`--help` alone, or with a group, a part or a key's path beside it."""
    if not words:
        return usage(verb, doc, keys)
    path = words[0].split("=")[0]
    if path == "preset":
        return presets()
    return part(path, keys)


def usage(verb: str, doc: str, keys: str) -> str:
    """What the verb does, every choice of every group, and the keys with their docstrings."""
    choices = "\n".join(_wrapped(f"  {group}=", _names(group)) for group in GROUPS)
    own = _listing(_own(keys), "", _values(verb))
    run = {name: key for name, key in keys_of("Run").items() if name not in GROUPS}
    inner = "".join(_listing(keys_of(_class(run.pop(name).kind)), f"{name}.", {}) for name in ("budget", "store"))
    return (
        f"usage: {program(verb)} [KEY=VALUE ...] [--cfg] [--help [preset | PART]]\n\n{doc.strip()}\n\n"
        f"Choices, a file each under configs/:\n{choices}\n\nKeys:\n{own}{_listing(run, '', _values('run'))}{inner}\n"
        "Any key of a choice can be set too (method.steps=100, net.width=32, scale.workers=2).\n"
        "--help preset lists the published settings; --help PART the keys of a part (data, method, method.codec,\n"
        "method.codec.nsd, recipe, scale); --cfg prints the resolved run with every key's meaning, and stops.\n"
        "Exit codes: 0 done, 1 could not go on, 2 refused."
    )


def _names(group: str) -> list[str]:
    """Choices; of nested ones the folder and how many it holds."""
    names = options(group)
    top = [name for name in names if "/" not in name]
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    return top + [f"{folder}/ ({sum(name.startswith(folder + '/') for name in names)})" for folder in folders]


def _wrapped(head: str, names: Sequence[str]) -> str:
    pad = " " * len(head)
    return textwrap.fill(" | ".join(names), WIDTH, initial_indent=head, subsequent_indent=pad, break_on_hyphens=False)


def presets() -> str:
    """Families and cells."""
    names = options("preset")
    lines = ["Presets: whole runs. preset=NAME, or preset=FAMILY/CELL for the settings of a paper.\n"]
    lines += [_entry(f"  {name}", _comment(CONFIGS / "preset" / f"{name}.yaml")) for name in names if "/" not in name]
    for family in sorted({name.split("/")[0] for name in names if "/" in name}):
        piece = next(iter(sorted((CONFIGS / "preset" / family).glob("_*.yaml"))), None)
        lines += ["", *textwrap.wrap(f"{family}/: {_comment(piece) if piece else ''}", WIDTH)]
        lines.append(
            _wrapped("  ", sorted((n.split("/")[1] for n in names if n.startswith(f"{family}/")), key=_natural))
        )
    return "\n".join(lines)


def _natural(name: str) -> list[tuple[str, int]]:
    """cifar10 before cifar100, ipc1 before ipc10 before ipc50."""
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D+)(\d*)", name)]


def part(path: str, keys: str) -> str:
    """The choices and keys of one part of a run."""
    from rayd.errors import refuse

    steps = path.split(".")
    lines = []
    if len(steps) == 1 and path in GROUPS:
        lines += [_entry(f"  {path}={name}", _comment(CONFIGS / path / f"{name}.yaml")) for name in options(path)] + [
            ""
        ]
    known, where, fields = [*keys_of("Run"), *_own(keys)], "", {**keys_of("Run"), **_own(keys)}
    for step in steps:
        if step not in fields:
            raise refuse("--help", path, " | ".join([*known, "preset"]), "give one of them, or a path below it")
        kind, where = fields[step].kind, f"{where}{step}."
        if where in ("method.codec.", "method.objective.", "method.terms."):
            return "\n".join(_words(step, steps[2:], known, path))
        fields = keys_of(_class(kind)) or {step: fields[step]}
    alone = list(fields) == steps[-1:]
    return "\n".join([*lines, _listing(fields, where.removesuffix(f"{steps[-1]}.") if alone else where, {})]).rstrip()


def _words(step: str, names: Sequence[str], known: Sequence[str], path: str) -> Iterator[str]:
    """The codecs, objectives or terms, each with what it is and its keys."""
    from rayd.errors import refuse

    classes, dicts = everything()
    words = dicts[WORDS[step]]
    if names and names[0] not in words:
        raise refuse("--help", path, " | ".join(f"method.{step}.{name}" for name in words))
    where = f"method.{step}[i]." if step == "terms" else f"method.{step}."
    for name in names or words:
        yield _entry(f"{where}name={name}", _sentence(source(classes[words[name]]).doc))
        yield _listing(keys_of(f"{words[name]}.Config", classes[words[name]]), where, {})


def _own(keys: str) -> dict[str, Key]:
    """The keys of the verb itself, those of a single section by their whole path."""
    if not keys:
        return {}
    module, _, name = keys.partition(":")
    fields = keys_of(name, HERE / f"{module[5:]}.py" if module.startswith("jobs.") else None)
    return fields | {
        f"{section}.{name}": key for section, one in fields.items() for name, key in keys_of(_class(one.kind)).items()
    }


def _class(kind: str) -> str:
    """The class of rayd in an annotation."""
    return next((word for word in re.findall(r"[A-Za-z_][\w.]*", kind) if word in everything()[0]), "")


def _listing(fields: Mapping[str, Key], where: str, values: Mapping[str, str]) -> str:
    lines = []
    for name, key in fields.items():
        default = values.get(name, PLAIN.get(key.default, key.default.strip("'\"")))
        words = re.findall(r"Literal\[([^]]*)\]", key.kind)
        choices = " | ".join(word.strip(" '\"") for word in words[0].split(",")) if words else ""
        text = f"{choices}. {key.doc}" if choices and key.doc else choices or key.doc
        lines.append(_entry(f"  {where}{name}={default}", text))
    return "".join(f"{line}\n" for line in lines)


def _entry(head: str, text: str) -> str:
    head, pad = head.ljust(COLUMN - 1) + " ", " " * COLUMN
    return (
        textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=pad, break_on_hyphens=False) or head.rstrip()
    )


def _sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".") + "."


def _values(verb: str) -> dict[str, str]:
    """Top-level scalars as a root YAML gives them."""
    path = CONFIGS / f"{verb}.yaml"
    lines = path.read_text().splitlines() if path.is_file() else []
    return {match[1]: match[2] for line in lines if (match := re.match(r"(\w+): +([^{\s#]\S*)", line))}


def _comment(path: Path) -> str:
    """What a YAML file says of itself: its comment lines at the top, or the one beside its first key."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    top = []
    for line in lines:
        if not line.startswith("#"):
            break
        top.append(line.lstrip("# "))
    if not top and lines and "  #" in lines[0]:
        return lines[0].split("  #", 1)[1].strip()
    return " ".join(top)


def commented(text: str, parts: Sequence[Any]) -> str:
    """YAML text with the docstring of each key as a comment beside it."""
    docs = {path: doc for part in parts for path, doc in _docs(part, "")}
    lines, stack, counts = [], list[tuple[int, str]](), dict[str, int]()
    for line in text.splitlines():
        match = re.match(r"( *)(- )?(\w+):", line)
        if match:
            indent, item = len(match[1]), bool(match[2])
            stack = [(depth, name) for depth, name in stack if depth < indent + (2 if item else 0)]
            parent = ".".join(name for _, name in stack if not name.isdigit())
            if item:
                stack = [(depth, name) for depth, name in stack if not name.isdigit()]
                counts[parent] = counts.get(parent, -1) + 1
                stack.append((indent + 1, str(counts[parent])))
            stack.append((indent + (2 if item else 0), match[3]))
            doc = docs.get(".".join(name for _, name in stack), "")
            line += f"   # {doc}" if doc else ""
        lines.append(line)
    return "".join(f"{line}\n" for line in lines)


def _docs(part: Any, where: str) -> Iterator[tuple[str, str]]:
    """Path -> docstring of everything below a value."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            yield from _docs(value, f"{where}{key}.")
    elif isinstance(part, list | tuple):
        for i, value in enumerate(part):
            yield from _docs(value, f"{where}{i}.")
    elif dataclasses.is_dataclass(part):
        kind: Any = type(part)
        classes = [cls for cls in kind.__mro__ if "__dataclass_fields__" in vars(cls) and cls.__module__ in sys.modules]
        files = {cls: source(Path(str(sys.modules[cls.__module__].__file__))) for cls in classes}
        if where.startswith("method.") and classes:
            yield f"{where}name", _sentence(files[classes[0]].doc)
        for cls in reversed(classes):
            for name, key in files[cls].classes.get(cls.__qualname__, ((), {}))[1].items():
                if key.doc:
                    yield f"{where}{name}", key.doc
        for field in dataclasses.fields(part):
            yield from _docs(getattr(part, field.name), f"{where}{field.name}.")
