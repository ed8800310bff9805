"""How an artifact is made and amended: every file out of a codec, sealed by the card.

Shapes: N images, K classes.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rayd.artifact.load import FORMAT, KIND, self_hash, step_size_of, verified
from rayd.artifact.png import grid, png
from rayd.artifact.readme import readme
from rayd.artifact.tensors import Read, Write, to_bytes, write_file
from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.distill.budget import BESIDE, BOUND, Ledger, Stored, packed, unpacked
from rayd.errors import Refused

SMALL = 64
"""A transform of at most so many numbers is written as text."""
PLACES = ("out", "buffer")
"""Where a run lay, which is no part of what it made: two equal runs leave the same card."""


class Decoder(Protocol):
    """What of a codec the artifact needs to draw a preview."""

    def __len__(self) -> int: ...
    def decode(self, index_N: Tensor) -> tuple[Tensor, Tensor]: ...
    def of_class(self, c: int) -> Tensor: ...
    def stored(self) -> dict[str, Stored]: ...


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
    data: Mapping[str, Any] | None = None
    """the dataset's manifest: name, source, counts, content hash"""
    seeds: Mapping[str, int] | None = None
    claim: Mapping[str, Any] | None = None
    """what was selected how, and what was not run"""


def files(
    birth: Provenance,
    codec: Decoder,
    stored: Mapping[str, Stored],
    transform: Transform,
    timing: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """Every file by name, the card last: write them in this order. `stored`: of codec, objective and terms together."""
    spec, numbers = birth.spec, transform.tensors()
    bound = {name: one for name, one in stored.items() if one.role in BOUND}
    teacher = {name: one for name, one in stored.items() if one.role == "teacher"}
    ledger = Ledger.of({**stored, **{f"transform.{name}": Stored(t, "transform") for name, t in numbers.items()}})
    out = {"codec.safetensors": to_bytes(packed(bound))}
    if teacher:
        out["teacher.safetensors"] = to_bytes(packed(teacher, BESIDE))
    small = sum(t.numel() for t in numbers.values()) <= SMALL
    if not small:
        out["transform.safetensors"] = to_bytes(numbers)
    about = {"meta": transform.meta(), "fingerprint": transform.fingerprint()}
    out["transform.json"] = _json(
        {**about, "tensors": {name: t.tolist() for name, t in numbers.items()} if small else {}}
    )
    out["ledger.json"] = _json(ledger.json())
    out["preview.png"] = preview(as_stored(codec), transform, spec)
    card: dict[str, Any] = {
        "kind": KIND,
        "format": FORMAT,
        "sentence": birth.sentence,
        "fingerprint": birth.fingerprint,
        "codec": dict(birth.codec),
        "shape": list(spec.shape),
        "classes": list(birth.classes),
        "images": len(codec),
        "roles": {name: one.role for name, one in stored.items()},
        "storage": {name: one.storage for name, one in stored.items()},
        "step_size": step_size_of(stored),
        "data": dict(birth.data or {}),
        "seeds": dict(birth.seeds or {}),
        "config": {key: one for key, one in (birth.config or {}).items() if key not in PLACES},
        "claim": dict(birth.claim or {}),
        "versions": {"torch": torch.__version__.split("+")[0]},
        "ledger": {
            "floats": ledger.floats,
            "bytes": ledger.bytes,
            "ipc": ledger.ipc(spec),
            "beside_floats": ledger.beside_floats,
        },
        "reads": 0,
        "scores": {},
    }
    return out | {"timing.json": _json(dict(timing or {}))} | _sealed(card, out)


def as_stored(codec: Decoder) -> Decoder:
    """A copy that went through its storage types: what a reader of the artifact gets."""
    twin = copy.deepcopy(codec)
    with torch.no_grad():
        for name, tensor in unpacked(packed(twin.stored())).items():
            twin.stored()[name].tensor.copy_(tensor)
    return twin


def save(folder: str | Path, made: Mapping[str, bytes]) -> Path:
    """`files(...)` into a folder; one that holds another artifact is refused, never overwritten."""
    target = Path(folder)
    if (target / "card.json").exists() and (target / "card.json").read_bytes() != made["card.json"]:
        raise Refused(f"{target}: holds another artifact; give another folder, or remove this one")
    for name, data in made.items():
        write_file(target / name, data)
    return target


def preview(codec: Decoder, transform: Transform, spec: Spec, columns: int = 10, rows: int = 10) -> bytes:
    """A row of images per class, in pixels, clipped."""
    lines = []
    with torch.no_grad():
        for c in range(min(spec.classes, rows)):
            index = codec.of_class(c)[:columns]
            lines.append(transform.inverse(codec.decode(index)[0].float()).cpu())
    return png(grid(lines))


def amend(
    read: Read, write: Write, changes: Mapping[str, Any], made: Mapping[str, bytes] | None = None
) -> dict[str, Any]:
    """The card with `changes` (scores, reads) and more hashed files; the artifact must be whole to be touched."""
    card, contents = verified(read)
    contents = {**contents, **(made or {})}
    contents.pop("README.md")
    card = {key: one for key, one in card.items() if key not in ("files", "sha256")} | dict(changes)
    sealed = _sealed(card, contents)
    for name, data in {**(made or {}), **sealed}.items():
        write(name, data)
    return dict(json.loads(sealed["card.json"]))


def _sealed(card: dict[str, Any], contents: Mapping[str, bytes]) -> dict[str, bytes]:
    page = readme(card, json.loads(contents["ledger.json"])).encode()
    listed = {name: hashlib.sha256(data).hexdigest() for name, data in sorted({**contents, "README.md": page}.items())}
    card = {**card, "files": listed}
    return {"README.md": page, "card.json": _json({**card, "sha256": self_hash(card)})}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
