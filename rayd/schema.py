"""Plain mappings to frozen dataclasses and back: strict reading, canonical writing, fingerprints. Nothing but Python.

A class that reads or writes itself in its own way has `from_plain(mapping, where)` and `to_plain()`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rayd.errors import Refused, refuse

T = TypeVar("T")
DERIVED = {"derived": True}
"""Metadata of a field that follows from the others: neither read nor written."""


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
    for key, one in fields.items():
        if key not in values and one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            raise refuse(at(where, key), "(missing)", describe(hints[key]), f"give {at(where, key)}=...")
    return cls(**values, **(derived or {}))


def unknown(key: str, given: Any, known: list[str], where: str = "") -> Refused:
    near = get_close_matches(key, known, n=1)
    hint = f"; did you mean {at(where, near[0])}?" if near else ""
    return Refused(f"{at(where, key)}={given!s}: no such key; known are {', '.join(known)}{hint}")


def value(kind: Any, given: Any, where: str, allowed: str = "") -> Any:
    """One value as its annotation says, or a refusal that names the place and what is allowed."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return given
    if origin in (Union, types.UnionType):
        if given is None and type(None) in args:
            return None
        kinds = [arg for arg in args if arg is not type(None)]
        if len(kinds) == 1:
            return value(kinds[0], given, where, describe(kind))
        fitting = [arg for arg in kinds if type(given) is arg]
        return value(
            fitting[0] if fitting else next((k for k in kinds if _fits(k, given)), kinds[0]),
            given,
            where,
            describe(kind),
        )
    if origin is Literal:
        if given in args and type(given) in {type(arg) for arg in args}:
            return given
    elif origin in (tuple, list) and isinstance(given, list | tuple):
        ends = args[:1] * len(given) if origin is list or args[-1] is Ellipsis else args
        if len(ends) == len(given):
            return origin(value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(ends, given, strict=True)))
    elif origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        if isinstance(given, Mapping):
            return {str(k): value(args[1], v, at(where, str(k))) for k, v in given.items()}
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return given if isinstance(given, kind) else parse(kind, given, where)
    elif kind is Path and isinstance(given, str):
        return Path(given)
    elif kind is float and type(given) in (int, float):
        return float(given)
    elif type(given) is kind:
        return given
    raise refuse(where, given, allowed or describe(kind))


def _fits(kind: Any, given: Any) -> bool:
    plain = get_origin(kind) or kind
    return (plain is float and type(given) is int) or (plain in (tuple, list) and isinstance(given, list | tuple))


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
    return {one.name: one for one in dataclasses.fields(cls) if one.init and "derived" not in one.metadata}


def at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def to_dict(obj: Any) -> Any:
    """Plain JSON values; `parse(type(obj), to_dict(obj))` gives the object back."""
    to_plain = getattr(obj, "to_plain", None)
    if to_plain is not None:
        return to_plain()
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {name: to_dict(getattr(obj, name)) for name in fields_of(obj)}
    if isinstance(obj, Mapping):
        return {str(key): to_dict(one) for key, one in obj.items()}
    if isinstance(obj, list | tuple):
        return [to_dict(one) for one in obj]
    return str(obj) if isinstance(obj, Path) else obj


def fingerprint(obj: Any) -> str:
    """sha256 of the canonical JSON: the same on every machine and Python, whatever the order of keys."""
    text = json.dumps(to_dict(obj), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def positive(name: str, given: float) -> None:
    if not given > 0:
        raise refuse(name, given, "a number above zero")
