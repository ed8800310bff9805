"""The artifact: a folder that says what it is, and loads with torch and safetensors alone, executing nothing.

    card.json           what, from what, how, scores; the sha256 of every other file and of itself
    codec.safetensors   every stored number that the budget binds, packed in its storage type, and nothing else
    teacher.safetensors the teacher, where the recipe asks one
    transform.json      network space (+ transform.safetensors where it is a matrix; a set of the zoo leaves that out, and it
                        is fitted again on the training set that the card names)
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
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayd.artifact import fields, view, zoo
from rayd.choices import plugins
from rayd.data.config import DataConfig
from rayd.data.images import Images, Spec
from rayd.data.load import closed
from rayd.data.load import load as load_data
from rayd.data.transform import Transform
from rayd.distill.budget import Budget, Stored, from_bytes, unpacked
from rayd.distill.contract import Codec
from rayd.errors import Failed, Refused, refuse
from rayd.methods import CODECS
from rayd.schema import parse
from rayd.store import Store

FORMAT = 3
"""3: a whitening matrix that was left out. 2: levels of fewer than eight bits or with other scales than those of rows,
and JPEG files; other cards say 1."""
MATRIX = "transform.safetensors"
KIND = "rayd artifact"
NEEDED = ("codec.safetensors", "transform.json", "ledger.json")
ON = "artifact.on(images) takes the training images from elsewhere"
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


def place_of(source: str | Path | Store) -> Store:
    """The folder of an artifact, which may not be one."""
    if isinstance(source, str) and source.startswith(zoo.PREFIX):
        source = zoo.find(source.removeprefix(zoo.PREFIX))
    return source if isinstance(source, Store) else Store(source)


def need_card(store: Store) -> None:
    """Refuse a folder that is no artifact, or not yet."""
    if not store.exists("card.json"):
        allowed = "the folder that a distillation left (out/artifact), with its card.json"
        raise refuse("artifact", store.uri.partition("?")[0], allowed, "run jobs.distill first, or give another folder")


def read_card(store: Store) -> dict[str, Any]:
    """The card, if it is one of ours, of a format we know, and as it was written."""
    need_card(store)
    name = store.where("card.json")
    card = fields.plain(store.read("card.json"), name)
    if not isinstance(card, dict) or card.get("kind") != KIND:
        raise Refused(f"{name}: kind={card.get('kind') if isinstance(card, dict) else '?'}: allowed is {KIND!r}")
    if not isinstance(card.get("format"), int) or card["format"] > FORMAT:
        raise Refused(f"{name}: format={card.get('format')}: allowed is up to {FORMAT}; update rayd to read it")
    if card.get("sha256") != self_hash(card):
        raise Refused(f"{name}: was changed after it was written (its sha256 differs); {fields.AGAIN}")
    return fields.card(card)


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
        raise Refused(f"{store.where(name)}: missing from the artifact; {fields.AGAIN}")
    raise Refused(
        f"{store.where(name)}: was changed after it was written (its sha256 differs from the card's); {fields.AGAIN}"
    )


@dataclass(frozen=True, eq=False)
class Artifact:
    """An artifact in memory; `codec` is built on demand."""

    card: dict[str, Any]
    ledger: Any
    whole: Transform | None
    """The transform, unless its matrix was left out."""
    stored: dict[str, Stored]
    contents: dict[str, bytes]
    table: dict[str, Any] | None = None
    """The scores, once there are any."""
    place: Store | None = None
    """Where it was loaded from."""
    own: plugins.Plugins = plugins.NONE
    """Code of the folder that was named beside it."""

    @property
    def spec(self) -> Spec:
        return Spec(tuple(self.card["shape"]), len(self.card["classes"]))

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.card["classes"])

    @cached_property
    def transform(self) -> Transform:
        """As it is stored; a whitening that was left out is fitted again (a minute, once) on the card's training set."""
        if self.whole is not None:
            return self.whole
        data = parse(DataConfig, self.card["config"].get("data", {}), "card.config.data")
        if why := closed(data, self.spec):
            raise Refused(f"transform: its matrix was left out, and the data of the card are not opened: {why}; {ON}")
        return self._fitted(load_data(data).train)

    def on(self, train: Images) -> Artifact:
        """The same with its transform, which is fitted on these training images where it was left out."""
        return replace(self, whole=self.whole or self._fitted(train))

    def _fitted(self, train: Images) -> Transform:
        meta, _ = fields.transform(self.contents["transform.json"])
        here = str(train.manifest["content"])
        if here != meta["source"]:
            raise refuse(
                "transform", f"training images {here[:12]}", f"those it was fitted on, {meta['source'][:12]}", ON
            )
        return Transform.fit(train, meta["kind"])

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

    def __str__(self) -> str:
        return view.text(self.card, self.table)

    def _repr_html_(self) -> str:
        return view.html(self.card, self.table, self.contents["preview.png"])

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


def load(source: str | Path | Store, methods: str | None = None) -> Artifact:
    """The artifact in a folder, at a URI, in a Store, or `zoo:NAME`: checked, unpacked. `methods`: a folder with the code
    of a codec of one's own; without it nothing is executed."""
    store = place_of(source)
    card, contents = verified(store)
    for name in NEEDED:
        if name not in contents:
            raise Refused(f"card.json: files: lists no {name}; {fields.AGAIN}")
    own = plugins.load(methods)
    if card["codec"].get("name") in own.codecs:
        there, here = (card.get("identity") or {}).get("methods"), own.source
        if there != here:
            code = f"the code that the artifact was made with, {str(there)[:12]}; this folder's is {str(here)[:12]}"
            raise refuse("methods", methods, code, "restore the folder as it was, or distil again")
    numbers: dict[str, Tensor] = {}
    for name in ("codec.safetensors", "teacher.safetensors"):
        if name in contents:
            numbers |= unpacked(from_bytes(contents[name], name))
    if set(numbers) != set(card["roles"]):
        raise refuse("card.json: roles", sorted(card["roles"]), f"a role for each of the stored {sorted(numbers)}")
    stored = {name: Stored(numbers[name], role, card["storage"][name]) for name, role in card["roles"].items()}
    for name, number in stored.items():
        if number.role == "step" and number.tensor.numel() != 1:
            raise refuse(name, tuple(number.tensor.shape), "one number, the learned step size")
    meta, values = fields.transform(contents["transform.json"])
    tensors = {name: torch.tensor(numbers, dtype=torch.float64).float() for name, numbers in values.items()}
    if MATRIX in contents:
        tensors = from_bytes(contents[MATRIX], MATRIX)
    spec, left_out = Spec(tuple(card["shape"]), len(card["classes"])), card["format"] >= 3 and not tensors
    transform = None if left_out else Transform.restore(meta, tensors, spec)
    table = fields.table(contents["controls.json"]) if "controls.json" in contents else None
    return Artifact(card, fields.ledger(contents["ledger.json"]), transform, stored, contents, table, store, own)


def rebuild(artifact: Artifact) -> Codec:
    """The codec that an artifact was saved from: its class by name, its resolved Config, its stored tensors."""
    plain = dict(artifact.card["codec"])
    name, codecs = plain.pop("name", None), plugins.joined("codecs", CODECS, artifact.own)
    if name not in codecs:
        do = "a codec of one's own needs its folder: methods=FOLDER"
        raise refuse("card.codec.name", name, " | ".join(codecs), do)
    with plugins.using(artifact.own):
        config: Any = parse(codecs[name].Config, plain, "card.codec")
    config.need(config.resolved())
    config.fit(Budget(floats=2**62), artifact.spec)
    shapes = {key: shape for key, (shape, _) in config.fixed_shapes(artifact.spec).items()}
    there = {key: tuple(number.tensor.shape) for key, number in artifact.stored.items()}
    wrong = [key for key, shape in shapes.items() if there.get(key) != shape]
    if wrong:
        have = there.get(wrong[0], "nothing")
        raise refuse(f"codec.safetensors: {wrong[0]}", have, f"{shapes[wrong[0]]}, as card.codec describes it")
    if config.decoded(artifact.spec) != len(artifact):
        raise refuse(
            "card.json: images", len(artifact), f"the {config.decoded(artifact.spec)} that card.codec describes"
        )
    codec: Codec = config.build(artifact.spec, torch.Generator().manual_seed(0))
    if type(codec).enter is not Codec.enter:  # of a codec that stores pixels of its own
        codec.enter(artifact.transform)
    codec.restore({key: number.tensor for key, number in artifact.stored.items()})
    return codec
