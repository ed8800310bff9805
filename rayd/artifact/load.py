"""The artifact: a folder that says what it is, and loads with torch and safetensors alone, executing nothing.

    card.json           what, from what, how, scores; the sha256 of every other file and of itself
    codec.safetensors   every stored number that the budget binds, packed in its storage type, and nothing else
    teacher.safetensors the teacher, where the recipe asks one
    transform.json      network space (+ transform.safetensors where it is a matrix)
    ledger.json         every stored number by role
    controls.json       the score table, once there is one (score-*.json: networks of an evaluation under way)
    preview.png  README.md
    timing.json         how long it took: the one file that differs between two equal runs, and is not hashed

The card is written last (rayd.artifact.write), and it alone decides which contents are valid: a folder without it is no
artifact. While an update is under way, a file's new contents lie under `NAME.SHA256` (12 digits) until they are moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.distill.budget import Stored, from_bytes, unpacked
from rayd.distill.contract import Codec
from rayd.errors import Failed, Refused, refuse
from rayd.methods import CODECS
from rayd.schema import parse
from rayd.store import Store

FORMAT = 2
"""2: levels of fewer than eight bits or with other scales than those of rows, and JPEG files; other cards say 1."""
KIND = "rayd artifact"
READS = 5
"""How often an artifact is read again because its card was replaced in between."""


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def content_name(name: str, sha256: str) -> str:
    """Where the contents of a file lie until they are moved to its own name."""
    return f"{name}.{sha256[:12]}"


def self_hash(card: Mapping[str, Any]) -> str:
    """sha256 of the card's canonical JSON without its own hash."""
    rest = {key: value for key, value in card.items() if key != "sha256"}
    return digest(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def step_size_of(stored: Mapping[str, Stored]) -> float | None:
    """The learned step size among stored numbers, if there is one."""
    steps = [number.tensor for number in stored.values() if number.role == "step"]
    return float(steps[0].flatten()[0]) if steps else None


def read_card(store: Store) -> dict[str, Any]:
    """The card, if it is one of ours, of a format we know, and as it was written."""
    if not store.exists("card.json"):
        raise Refused("artifact: no card.json here; allowed is the folder a distillation left (out/artifact)")
    try:
        card = json.loads(store.read("card.json"))
    except ValueError as error:
        raise Refused(f"card.json: not JSON ({error}); fetch the artifact again") from error
    if not isinstance(card, dict) or card.get("kind") != KIND:
        raise Refused(f"card.json: kind={card.get('kind') if isinstance(card, dict) else '?'}: allowed is {KIND!r}")
    if not isinstance(card.get("format"), int) or card["format"] > FORMAT:
        raise Refused(f"card.json: format={card.get('format')}: allowed is up to {FORMAT}; update rayd to read it")
    if card.get("sha256") != self_hash(card):
        raise Refused("card.json: was changed after it was written (its sha256 differs); fetch the artifact again")
    return card


def verified(store: Store) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The card and every file it lists, each with the contents that the card names."""
    for _ in range(READS):
        card = read_card(store)
        try:
            return card, {name: _contents(store, name, sha256) for name, sha256 in card["files"].items()}
        except (Refused, Failed):
            if read_card(store)["sha256"] == card["sha256"]:
                raise
    raise Failed(f"{store.where('card.json')}: replaced {READS} times while it was read; read it again")


def _contents(store: Store, name: str, sha256: str) -> bytes:
    if "/" in name or "\\" in name or name.startswith("."):
        raise Refused(f"card.json: files.{name}: allowed is a plain file name")
    present = [place for place in (name, content_name(name, sha256)) if store.exists(place)]
    for place in present:
        data = store.read(place)
        if digest(data) == sha256:
            return data
    if not present:
        raise Refused(f"{name}: missing from the artifact; fetch it again")
    raise Refused(f"{name}: was changed after it was written (its sha256 differs from the card's); fetch it again")


@dataclass(frozen=True, eq=False)
class Artifact:
    """An artifact in memory; `codec` is built on demand."""

    card: dict[str, Any]
    ledger: Any
    transform: Transform
    stored: dict[str, Stored]
    contents: dict[str, bytes]

    @property
    def spec(self) -> Spec:
        return Spec(tuple(self.card["shape"]), len(self.card["classes"]))

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.card["classes"])

    @property
    def step_size(self) -> float | None:
        """The learned step size, as stored."""
        return step_size_of(self.stored)

    @property
    def teacher(self) -> Tensor | None:
        """Parameters of the network that the set is labelled by, where it needs one."""
        return next((number.tensor for number in self.stored.values() if number.role == "teacher"), None)

    @property
    def has_soft_labels(self) -> bool:
        """Whether more than classes is stored."""
        return any(number.role == "labels" for number in self.stored.values())

    @cached_property
    def codec(self) -> Codec:
        return rebuild(self)

    def __len__(self) -> int:
        return int(self.card["images"])

    @torch.no_grad()
    def images(self, space: str = "pixels", index: Tensor | None = None, chunk: int = 512) -> Tensor:
        """As `pixels` (0 to 1, out-of-range values kept), `network` (what networks see) or `uint8` (clipped).

        `index`: which of them; all if not given.
        """
        inverse = self.transform.inverse
        views: dict[str, Callable[[Tensor], Tensor]] = {
            "pixels": inverse, "network": lambda network: network, "uint8": lambda network: quantise(inverse(network)),
        }  # fmt: skip
        if space not in views:
            raise Refused(f"space={space}: allowed is {', '.join(views)}")
        wanted = torch.arange(len(self)) if index is None else index
        return torch.cat([views[space](self.codec.decode(part)[0].float()) for part in wanted.split(chunk)])

    @property
    @torch.no_grad()
    def targets(self) -> Tensor:
        """Label probabilities [N, K]."""
        return torch.cat([self.codec.decode(index)[1].float() for index in torch.arange(len(self)).split(512)])

    @property
    def labels(self) -> Tensor:
        """Class numbers [N]."""
        return torch.as_tensor(self.codec.classes())


def quantise(pixels: Tensor) -> Tensor:
    """[0, 1] floats to 8 bits, clipped."""
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def load(source: str | Path | Store) -> Artifact:
    """The artifact in a folder, at a URI or in a Store: checked, unpacked, nothing executed."""
    card, contents = verified(source if isinstance(source, Store) else Store(source))
    numbers = unpacked(from_bytes(contents["codec.safetensors"], "codec.safetensors"))
    if "teacher.safetensors" in contents:
        numbers |= unpacked(from_bytes(contents["teacher.safetensors"], "teacher.safetensors"))
    stored = {name: Stored(numbers[name], role, card["storage"][name]) for name, role in card["roles"].items()}
    about = json.loads(contents["transform.json"])
    tensors = {name: torch.tensor(values) for name, values in about["tensors"].items()}
    if "transform.safetensors" in contents:
        tensors = from_bytes(contents["transform.safetensors"], "transform.safetensors")
    transform = Transform.restore(about["meta"], tensors)
    return Artifact(card, json.loads(contents["ledger.json"]), transform, stored, contents)


def rebuild(artifact: Artifact) -> Codec:
    """The codec that an artifact was saved from: its class by name, its resolved Config, its stored tensors."""
    plain = dict(artifact.card["codec"])
    name = plain.pop("name", None)
    if name not in CODECS:
        raise refuse("card.codec.name", name, " | ".join(CODECS))
    config = parse(CODECS[name].Config, plain, "card.codec")
    codec: Codec = config.build(artifact.spec, torch.Generator().manual_seed(0))
    codec.enter(artifact.transform)
    codec.restore({key: number.tensor for key, number in artifact.stored.items()})
    return codec
