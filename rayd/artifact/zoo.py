"""Finished sets by name: `zoo:NAME`, out of the folder artifacts/ of this package, or of a base of one's own (RAYD_ZOO).

A base is a folder, a URI (s3://, gs://) or an http(s) address with `index.json` and a folder for each set. The index has the
sha256 of each card, and a card the sha256 of each file, so what is loaded is what was listed. A set is plain files, never an
archive, of no more bytes than the index states; nothing is executed. A set that this package lists too must be the same one.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rayd.artifact import fields
from rayd.data.builder import build, cache_folder
from rayd.errors import Failed, Refused, refuse
from rayd.schema import parse
from rayd.store import Store, within

PREFIX = "zoo:"
HERE = Path(__file__).resolve().parent.parent
OURS = HERE / "artifacts" if (HERE / "artifacts").is_dir() else HERE.parent / "artifacts"
"""In the package of a wheel, beside it in a checkout."""
INDEX = "index.json"
LARGEST = 2**30
"""Bytes of a set; an index that states more is refused."""
LARGEST_INDEX = 2**22
TIMEOUT_S = 60.0
Read = Callable[[str, int], bytes]
"""The file of a name, of so many bytes at most."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished set, as an index lists it."""

    name: str
    """By which it is loaded, and of its folder."""
    bytes: int
    """Of all its files."""
    sha256: str
    """Of its card."""
    command: str
    """What made it."""
    score: dict[str, Any] = field(default_factory=dict)
    """Its first row: mean, std, n, recipe, network."""
    stored: int = 0
    """Bytes of the numbers that a budget binds."""


def base_of() -> str:
    return os.environ.get("RAYD_ZOO") or str(OURS)


def entries(base: str | None = None) -> dict[str, Entry]:
    """The sets of a base by name."""
    base = base or base_of()
    listed = fields.plain(_reader(base)(INDEX, LARGEST_INDEX), INDEX)
    if not isinstance(listed, list):
        raise refuse(f"{base}/{INDEX}", type(listed).__name__, "a list of sets")
    found = [parse(Entry, one, f"{INDEX}[{i}]") for i, one in enumerate(listed)]
    return {entry.name: entry for entry in found}


def find(name: str, base: str | None = None) -> Store:
    """The folder of a set whose card is the listed one; from the web it is fetched into the cache folder first."""
    base = base or base_of()
    known = entries(base)
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise refuse(
            "zoo", name, " | ".join(known) or f"none: {base} lists nothing", f"did you mean {near[0]}?" if near else ""
        )
    entry = known[name]
    ours = {} if base == str(OURS) else _ours()
    if name in ours and ours[name].sha256 != entry.sha256:
        raise Refused(f"zoo:{name}: {base} has another set of that name than this package; rename it there")
    if entry.bytes > LARGEST or not set(entry.sha256) <= set("0123456789abcdef") or "/" in name or name.startswith("."):
        raise refuse("zoo", name, f"a set of up to {LARGEST:,} bytes in a folder of its name", f"mend {base}/{INDEX}")
    if not base.startswith(("http://", "https://")):
        store = Store(within(base, name))
        _check(entry, store.read("card.json"))
        return store
    path = cache_folder() / f"zoo-{name}-{entry.sha256[:16]}"
    build(path, Path.is_dir, lambda draft: _fetch(entry, _reader(within(base, name)), draft))
    return Store(path)


def _ours() -> dict[str, Entry]:
    return entries(str(OURS)) if (OURS / INDEX).is_file() else {}


def _check(entry: Entry, card: bytes) -> None:
    if hashlib.sha256(card).hexdigest() != entry.sha256:
        raise Refused(f"zoo:{entry.name}: its card.json is not the listed one (its sha256 differs); fetch it again")


def _fetch(entry: Entry, read: Read, draft: Path) -> None:
    """The card, then each file that it lists, checked before anything is published."""
    card = read("card.json", entry.bytes)
    _check(entry, card)
    draft.mkdir()
    (draft / "card.json").write_bytes(card)
    left = entry.bytes - len(card)
    for name, sha256 in fields.card(fields.plain(card, "card.json"))["files"].items():
        if Path(name).name != name or name.startswith("."):
            raise refuse("card.json: files", name, "plain file names")
        data = read(name, left)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Refused(f"zoo:{entry.name}: {name} is not the listed one (its sha256 differs); fetch it again")
        (draft / name).write_bytes(data)
        left -= len(data)


def _reader(base: str) -> Read:
    if not base.startswith(("http://", "https://")):
        store = Store(base)

        def from_store(name: str, most: int) -> bytes:
            if not store.exists(name):
                raise refuse("RAYD_ZOO", base, f"a place that holds {name}")
            return _bounded(store.read_range(name, 0, most + 1), name, most)

        return from_store

    def from_web(name: str, most: int) -> bytes:
        url = f"{base.rstrip('/')}/{name}"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                return _bounded(answer.read(most + 1), name, most)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise Failed(f"{url}: {error}; try again, or set RAYD_ZOO to another place") from error

    return from_web


def _bounded(data: bytes, name: str, most: int) -> bytes:
    if len(data) > most:
        raise refuse(name, f"more than {most:,} bytes", f"{most:,} bytes at most, as the index states")
    return data


def entry_of(folder: Path, command: str) -> Entry:
    """What an index says of an artifact in a folder."""
    card = json.loads((folder / "card.json").read_bytes())
    listed = ["card.json", *card["files"]]
    row: dict[str, Any] = next((row for _, row in sorted(card["scores"].items()) if row.get("set") == "distilled"), {})
    return Entry(
        name=folder.name,
        bytes=sum((folder / name).stat().st_size for name in listed),
        sha256=hashlib.sha256((folder / "card.json").read_bytes()).hexdigest(),
        command=command,
        score={key: row[key] for key in ("mean", "std", "n", "recipe", "net") if key in row},
        stored=card["ledger"]["bytes"],
    )
