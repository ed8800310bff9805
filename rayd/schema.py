"""Plain mappings to frozen dataclasses and back: strict reading, canonical writing, fingerprints. Nothing but Python.

A class that reads or writes itself in its own way has `from_plain(mapping, where)` and `to_plain()`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rayd.errors import Refused, refuse

T = TypeVar("T")
DERIVED = {"derived": True}
"""Metadata of a field that follows from the others: neither read nor written."""
DEEPEST = 50
"""How deep JSON from a file may be nested."""

ADDED = {"added": True}
"""Metadata of a field that came after the first fingerprints: written only where it differs from its default, so that runs
from before it keep theirs."""


def parse(cls: type[T], mapping: Any, where: str = "") -> T:
    """Build a dataclass out of a mapping, strictly: no unknown key, no missing one, no value of another type."""
    if not isinstance(mapping, Mapping):
        raise refuse(where or cls.__name__, mapping, f"a mapping with the keys {', '.join(fields_of(cls))}")
    from_plain = getattr(cls, "from_plain", None)
    if from_plain is not None:
        return from_plain(mapping, where)  # type: ignore[no-any-return]
    return read(cls, mapping, where)


def read(cls: type[T], mapping: Mapping[str, Any], where: str, derived: Mapping[str, Any] | None = None) -> T:
    """The strict reading itself; `derived` are values for the fields that nobody may set by name."""
    fields = fields_of(cls)
    for key in mapping:
        if key not in fields:
            raise unknown(str(key), mapping[key], list(fields), where)
    hints = get_type_hints(cls)
    values = {key: value(hints[key], mapping[key], at(where, key)) for key in mapping}
    for key, field in fields.items():
        if key not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise refuse(at(where, key), "(missing)", describe(hints[key]), f"give {at(where, key)}=...")
    return cls(**values, **(derived or {}))


def unknown(key: str, raw: Any, known: list[str], where: str = "") -> Refused:
    near = get_close_matches(key, known, n=1)
    hint = f"; did you mean {at(where, near[0])}?" if near else ""
    return Refused(f"{at(where, key)}={raw!s}: no such key; known are {', '.join(known)}{hint}")


def value(kind: Any, raw: Any, where: str, allowed: str = "") -> Any:
    """One value as its annotation says, or a refusal that names the place and what is allowed."""
    origin = get_origin(kind)
    if kind is Any:
        return raw
    if origin in (Union, types.UnionType):
        return _union(kind, raw, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return raw if isinstance(raw, kind) else parse(kind, raw, where)
    reader = READERS.get(origin or kind, _exactly)
    read_value = reader(kind, raw, where)
    if read_value is REFUSED:
        raise refuse(where, raw, allowed or describe(kind))
    return read_value


REFUSED = object()
"""What a reader returns for a value that its annotation does not allow."""


def _exactly(kind: Any, raw: Any, where: str) -> Any:
    return raw if type(raw) is kind else REFUSED


def _number(kind: Any, raw: Any, where: str) -> Any:
    return float(raw) if type(raw) in (int, float) else REFUSED


def _path(kind: Any, raw: Any, where: str) -> Any:
    return Path(raw) if isinstance(raw, str | Path) else REFUSED


def _choice(kind: Any, raw: Any, where: str) -> Any:
    return next((arg for arg in get_args(kind) if type(arg) is type(raw) and arg == raw), REFUSED)


def _sequence(kind: Any, raw: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if not isinstance(raw, list | tuple):
        return REFUSED
    kinds = args[:1] * len(raw) if origin is list or args[-1] is Ellipsis else args
    if len(kinds) != len(raw):
        return REFUSED
    return origin(value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, raw, strict=True)))


def _mapping(kind: Any, raw: Any, where: str) -> Any:
    if not isinstance(raw, Mapping):
        return REFUSED
    return {str(k): value(get_args(kind)[1], v, at(where, str(k))) for k, v in raw.items()}


READERS = {
    Literal: _choice,
    tuple: _sequence,
    list: _sequence,
    dict: _mapping,
    Mapping: _mapping,
    float: _number,
    Path: _path,
}
"""How a value is read, by its annotation; whatever is not listed must be of that very type."""


def _union(kind: Any, raw: Any, where: str) -> Any:
    """The member whose type the value has, else one that could take it, else the first, which says why not."""
    members = [arg for arg in get_args(kind) if arg is not type(None)]
    if raw is None and len(members) < len(get_args(kind)):
        return None
    same = [arg for arg in members if type(raw) is arg]
    near = [arg for arg in members if _fits(get_origin(arg) or arg, raw)]
    return value([*same, *near, *members][0], raw, where, describe(kind))


def _fits(origin: Any, raw: Any) -> bool:
    return (origin is float and type(raw) is int) or (origin in (tuple, list) and isinstance(raw, list | tuple))


def describe(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else describe(arg) for arg in args)
    if origin in (tuple, list):
        return f"a list of {describe(args[0])}"
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return f"a mapping with the keys {', '.join(fields_of(kind))}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def fields_of(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls) if field.init and "derived" not in field.metadata}


def written(obj: Any) -> list[str]:
    """Fields of a dataclass that its plain form has."""
    fields = fields_of(obj).items()
    return [name for name, field in fields if "added" not in field.metadata or getattr(obj, name) != field.default]


def fields(mapping: Any, kinds: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """A mapping out of a file that has at least these keys, each of its kind; others may stand beside them."""
    if not isinstance(mapping, Mapping):
        raise refuse(where, mapping, f"a mapping with the keys {', '.join(kinds)}")
    for key, kind in kinds.items():
        if key not in mapping:
            raise refuse(at(where, key), "(missing)", describe(kind))
        value(kind, mapping[key], at(where, key))
    return dict(mapping)


def from_json(data: str | bytes) -> Any:
    """What JSON text holds, whoever wrote it. A ValueError where a number is not finite or takes more than 64 bits, where a
    text cannot be written again, and where it is nested too deep."""
    try:
        plain = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    _check(plain, 0)
    return plain


def _check(plain: Any, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if isinstance(plain, str):
        plain.encode()
    elif isinstance(plain, float) and not math.isfinite(plain):
        raise ValueError(f"{plain} is no finite number")
    elif isinstance(plain, int) and abs(plain) >= 2**64:
        raise ValueError("a number of more than 64 bits")
    elif isinstance(plain, list):
        for item in plain:
            _check(item, depth + 1)
    elif isinstance(plain, dict):
        for key, item in plain.items():
            key.encode()
            _check(item, depth + 1)


def at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def to_dict(obj: Any) -> Any:
    """Plain JSON values; `parse(type(obj), to_dict(obj))` gives the object back."""
    to_plain = getattr(obj, "to_plain", None)
    if to_plain is not None:
        return to_plain()
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {name: to_dict(getattr(obj, name)) for name in written(obj)}
    if isinstance(obj, Mapping):
        return {str(key): to_dict(item) for key, item in obj.items()}
    if isinstance(obj, list | tuple):
        return [to_dict(item) for item in obj]
    return str(obj) if isinstance(obj, Path) else obj


def fingerprint(obj: Any) -> str:
    """sha256 of the canonical JSON: the same on every machine and Python, whatever the order of keys."""
    text = json.dumps(to_dict(obj), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def positive(name: str, raw: float) -> None:
    if not raw > 0:
        raise refuse(name, raw, "a number above zero")
