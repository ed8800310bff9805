"""How an artifact is written and amended: every file from a codec, and the card with their hashes last.

Shapes: N images, K classes.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from rayd.artifact.card import as_json, sealed
from rayd.artifact.load import FORMAT, KIND, MATRIX, content_name, digest, read_card, step_size_of, verified
from rayd.artifact.png import grid, png
from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.distill.budget import BESIDE, BOUND, Ledger, Stored, packed, to_bytes, unpacked
from rayd.errors import Failed, Refused, refuse
from rayd.machine import versions
from rayd.store import Lease, Store
from rayd.store.lock import locked

SMALL = 64
"""A transform of at most so many numbers is written as text."""
PLACES = ("out", "buffer", "scores", "methods")
"""Where a run lay, which is no part of what it made: two equal runs leave the same card, and it names no folder or user."""
FORMAT_ONE = ("fp32", "fp16", "bf16", "int8")
"""Storages of format 1."""
LOCK = ".card.json.tmp"
LOCK_SECONDS = 60.0
"""An update takes well under a second; another process that holds the lock for so long hangs."""


class Decoder(Protocol):
    """What of a codec the artifact needs to draw a preview."""

    def __len__(self) -> int: ...
    def decode(self, index_N: Tensor) -> tuple[Tensor, Tensor]: ...
    def of_class(self, c: int) -> Tensor: ...
    def stored(self) -> dict[str, Stored]: ...
    def restore(self, numbers: Mapping[str, Tensor]) -> None: ...


D = TypeVar("D", bound=Decoder)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything a card says of where an artifact comes from. All of it is deterministic: times go to `timing`."""

    codec: Mapping[str, Any]
    """name and the resolved Config: what rebuilds it"""
    spec: Spec
    classes: tuple[str, ...]
    sentence: str = ""
    """codec + objective + terms"""
    config: Mapping[str, Any] | None = None
    """the resolved run"""
    fingerprint: str = ""
    """of the config"""
    identity: Mapping[str, Any] | None = None
    """what else decides the bytes: content of the images, code, device, arithmetic, experts"""
    data: Mapping[str, Any] | None = None
    """the dataset's manifest: name, source, counts, content hash"""
    seeds: Mapping[str, int] | None = None
    versions: Mapping[str, str] = field(default_factory=versions)
    """of rayd, torch and Ray, and the device"""
    claim: Mapping[str, Any] | None = None
    """what was selected how, and what was not run"""


def files(
    provenance: Provenance,
    codec: Decoder,
    stored: Mapping[str, Stored],
    transform: Transform,
    timing: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """Every file by name, the card last: write them in this order. `stored`: of codec, objective and terms together."""
    spec, numbers = provenance.spec, transform.tensors()
    bound = {name: number for name, number in stored.items() if number.role in BOUND}
    teacher = {name: number for name, number in stored.items() if number.role == "teacher"}
    ledger = Ledger.of({**stored, **{f"transform.{name}": Stored(t, "transform") for name, t in numbers.items()}})
    out = {"codec.safetensors": to_bytes(packed(bound))}
    if teacher:
        out["teacher.safetensors"] = to_bytes(packed(teacher, BESIDE))
    small = sum(t.numel() for t in numbers.values()) <= SMALL
    if not small:
        out[MATRIX] = to_bytes(numbers)
    about = {"meta": transform.meta(), "fingerprint": transform.fingerprint()}
    out["transform.json"] = as_json(
        {**about, "tensors": {name: t.tolist() for name, t in numbers.items()} if small else {}}
    )
    out["ledger.json"] = as_json(ledger.json())
    out["preview.png"] = preview(as_stored(codec), transform, spec)
    manifest = dict(provenance.data or {})
    card: dict[str, Any] = {
        "kind": KIND,
        "format": 2 if needs_two(provenance.codec, stored) else 1,
        "sentence": provenance.sentence,
        "fingerprint": provenance.fingerprint,
        "identity": dict(provenance.identity or {}),
        "codec": dict(provenance.codec),
        "shape": list(spec.shape),
        "classes": list(provenance.classes),
        "images": len(codec),
        "roles": {name: number.role for name, number in stored.items()},
        "storage": {name: number.storage for name, number in stored.items()},
        "step_size": step_size_of(stored),
        "data": {**manifest, "source": _last_part(manifest["source"])} if manifest.get("source") else manifest,
        "seeds": dict(provenance.seeds or {}),
        "config": _unplaced(provenance.config or {}),
        "claim": dict(provenance.claim or {}),
        "versions": dict(provenance.versions),
        "ledger": {
            "floats": ledger.floats,
            "bytes": ledger.bytes,
            "ipc": ledger.ipc(spec),
            "beside_floats": ledger.beside_floats,
        },
        "reads": 0,
        "scores": {},
    }
    return out | {"timing.json": as_json(dict(timing or {}))} | sealed(card, out)


def needs_two(codec: Mapping[str, Any], stored: Mapping[str, Stored]) -> bool:
    """Whether a reader of format 1 would not understand the tensors."""
    return codec.get("name") == "jpeg" or any(number.storage not in FORMAT_ONE for number in stored.values())


def _unplaced(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config without the places of its files; of the dataset's, the last part of its name stays."""
    plain = {key: value for key, value in config.items() if key not in PLACES}
    path = plain.get("data", {}).get("path")
    return plain | {"data": {**plain["data"], "path": _last_part(path)}} if path else plain


def _last_part(path: str) -> str:
    return PurePath(path.partition("?")[0]).name.rpartition("@")[2]


def as_stored(codec: D) -> D:
    """A copy that went through its storage types: what a reader of the artifact gets."""
    twin = copy.deepcopy(codec)
    twin.restore(unpacked(packed(twin.stored())))
    return twin


def save(
    target: Store | str | Path,
    provenance: Provenance,
    codec: Decoder,
    stored: Mapping[str, Stored],
    transform: Transform,
    timing: Mapping[str, Any] | None = None,
    most: float = math.inf,
    unit: str = "floats",
) -> None:
    """`files` into a folder. Refused: more than `most` floats or bytes, and a folder that holds another artifact."""
    contents = files(provenance, codec, stored, transform, timing)
    size = json.loads(contents["ledger.json"])[unit]
    if size > most:
        raise refuse("budget", f"{most} {unit}", f"at least the {size} {unit} that {provenance.sentence} stores")
    store = target if isinstance(target, Store) else Store(target)
    if store.exists("card.json") and store.read("card.json") != contents["card.json"]:
        raise Refused(f"{store.uri}: holds another artifact; give another folder, or remove this one")
    for name, data in contents.items():
        store.write(name, data)


def preview(codec: Decoder, transform: Transform, spec: Spec) -> bytes:
    return png(preview_grid(codec, transform, spec))


def preview_grid(codec: Decoder, transform: Transform, spec: Spec, columns: int = 10, rows: int = 10) -> Tensor:
    """A row of images per class, in pixels, clipped."""
    lines = []
    with torch.no_grad():
        for c in range(min(spec.classes, rows)):
            index = codec.of_class(c)[:columns]
            lines.append(transform.inverse(codec.decode(index)[0].float()).cpu())
    return grid(lines)


Update = Callable[[Mapping[str, Any], Mapping[str, bytes]], tuple[Mapping[str, Any], Mapping[str, bytes]]]
"""From an artifact's card and files to what changes in the card, and files that are new."""


def amend(store: Store, update: Update) -> dict[str, Any]:
    """The card and files as `update` makes them of the present ones. Updates of several processes follow one another.

    New contents are written under names of their own, the card that names them is replaced, and only then do they take
    their places: at every moment all that the card lists can be read, and a process that dies leaves the old state or
    the new one.
    """
    with _locked(store):
        card, contents = verified(store)
        changes, added = update(card, contents)
        contents = {name: data for name, data in contents.items() if name != "README.md"} | dict(added)
        card = {key: value for key, value in card.items() if key not in ("files", "sha256")} | dict(changes)
        seal = sealed(card, contents)
        for name, data in {**added, "README.md": seal["README.md"]}.items():
            store.write(content_name(name, digest(data)), data)
        store.write("card.json", seal["card.json"])
        _settle(store)
    return dict(json.loads(seal["card.json"]))


def leave_out_matrix(store: Store) -> None:
    """The artifact without the matrix of its whitening (75 MB at 32 px, of a set of 0.1): readers fit it again."""
    with _locked(store):
        card, contents = verified(store)
        if MATRIX in contents:
            kept = {name: data for name, data in contents.items() if name not in ("README.md", MATRIX)}
            card = {key: value for key, value in card.items() if key not in ("files", "sha256")} | {"format": FORMAT}
            seal = sealed(card, kept)
            store.write(content_name("README.md", digest(seal["README.md"])), seal["README.md"])
            store.write("card.json", seal["card.json"])
            _settle(store)
        if store.exists(MATRIX):  # of a process that died before it
            store.delete(MATRIX)


def settle(store: Store) -> None:
    """Finish an update that a dead process left between the card and its files."""
    with _locked(store):
        _settle(store)


def _settle(store: Store) -> None:
    names = read_card(store)["files"]
    spare = re.compile(rf"({'|'.join(map(re.escape, ('controls.json', *names)))})\.[0-9a-f]{{12}}")
    waiting = [name for name in store.list() if spare.fullmatch(name)]
    for name, sha256 in names.items():
        if content_name(name, sha256) in waiting:
            store.write(name, store.read(content_name(name, sha256)))
    for name in waiting:
        store.delete(name)


@contextlib.contextmanager
def _locked(store: Store) -> Iterator[None]:
    """One process at a time; the lock of a dead one is free. In an object store it is a lease."""
    if store.local is None:
        with _leased(store):
            yield
        return
    path, limit = store.local / LOCK, time.monotonic() + LOCK_SECONDS
    while time.monotonic() < limit:
        with locked(path) as ours:
            if ours:
                yield
                return
        time.sleep(0.02)
    raise Failed(f"{path}: another process has held it for {LOCK_SECONDS:.0f} s; end it first")


def _leased(store: Store) -> contextlib.AbstractContextManager[object]:
    """The folder's lease, waited for while others hold it."""
    stack, limit = contextlib.ExitStack(), time.monotonic() + LOCK_SECONDS
    while True:
        try:
            stack.enter_context(Lease(store, beat=1.0))
            return stack
        except Refused:
            if time.monotonic() > limit:
                raise
            time.sleep(0.1)
