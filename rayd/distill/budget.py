"""What is stored, counted: every number by role, in floats, in equivalent images per class and in bytes on disk.

The rule that keeps it honest: a float is a number in the saved file, of however few bits. An artifact carries what
`packed()` makes of `Stored` tensors, and the ledger counts those, scales and layout included; nothing is free.

The budget binds the roles of `BOUND`, which lie together in one file. What a consumer also needs (`BESIDE`) is listed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from rayd.distill.storage import FORM, SCALE, Shape, Storage, count, pack, pack_shape, unpack
from rayd.errors import Refused, refuse
from rayd.numbers import size_of_text
from rayd.schema import fields_of, positive, read

BOUND = ("pixels", "factors", "decoder", "labels", "step")
BESIDE = ("transform", "teacher")
FLOAT, HEADER = 4, 512
"""Bytes of a number in fp32, and of a file beside its numbers at most."""
Shapes = Mapping[str, tuple[Shape, str]]
"""What would be stored: name -> (shape, role)."""
Storages = str | Callable[[str, str], str]
"""A storage, or that of each tensor by name and role."""
STEP: Shapes = {"step_size": ((1,), "step")}
"""The learned step size, which every fit reserves."""


class Sized(Protocol):
    """The part of `data.Spec` that a budget reads."""

    @property
    def shape(self) -> Shape: ...
    @property
    def classes(self) -> int: ...


def image(spec: Sized) -> int:
    """Floats of one image."""
    return math.prod(spec.shape)


@dataclass(frozen=True)
class Stored:
    """A tensor that an artifact must carry, what it is for, and how it is written (`rayd.distill.storage`)."""

    tensor: Tensor
    role: str
    storage: str = "fp32"

    def __post_init__(self) -> None:
        if self.role not in BOUND + BESIDE:
            raise refuse("role", self.role, " | ".join(BOUND + BESIDE))
        Storage.parse(self.storage)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.tensor, self.role))


def packed(stored: Mapping[str, Stored], roles: tuple[str, ...] = BOUND) -> dict[str, Tensor]:
    """The file's tensors by name."""
    return {
        name + suffix: part
        for name, entry in stored.items()
        if entry.role in roles
        for suffix, part in pack(entry.tensor, entry.storage).items()
    }


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `packed`: fp32 tensors by their own names. Needs nothing but the file."""
    return {
        name: unpack({suffix: tensors[name + suffix] for suffix in ("", SCALE, FORM) if name + suffix in tensors})
        for name in tensors
        if not name.endswith((SCALE, FORM))
    }


# --- the file -----------------------------------------------------------------------------------------------


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The same tensors give the same bytes."""
    return dump_tensors({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def from_bytes(data: bytes, name: str = "tensor file") -> dict[str, Tensor]:
    """The tensors that `to_bytes` wrote; `name` of the file, for the refusal of one that is damaged."""
    try:
        tensors = parse_tensors(data)
    except (SafetensorError, KeyError) as error:
        raise Refused(f"{name}: not a readable safetensors file ({error}); fetch it again") from error
    for key, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise refuse(f"{name}: {key}", tensor.dtype, " | ".join(_DTYPES.values()))
    return tensors


_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.float64: "F64",
}
"""In the order in which a safetensors file sorts them, smallest first."""


def file_bytes(tensors: Mapping[str, tuple[Shape, torch.dtype]], meta: Mapping[str, str] | None = None) -> int:
    """Exact size of the safetensors file of these tensors: 8 bytes, a JSON header padded to 8, the data."""
    order = list(_DTYPES)
    names = sorted(tensors, key=lambda name: (-order.index(tensors[name][1]), name))
    header: dict[str, Any] = {"__metadata__": dict(meta)} if meta is not None else {}
    end = 0
    for name in names:
        shape, dtype = tensors[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + end


# --- the ledger -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One tensor of the file."""

    name: str
    role: str
    shape: Shape
    floats: int
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Ledger:
    """Every number an artifact holds. `rows` are bound by the budget; `beside` is what a consumer needs as well."""

    rows: tuple[Row, ...]
    beside: tuple[Row, ...]
    bytes: int
    """Size on disk of the file that holds `rows`, header included."""

    @classmethod
    def of(cls, stored: Mapping[str, Stored], meta: Mapping[str, str] | None = None) -> Ledger:
        """`meta`: the text the file's header carries (it has a size, too)."""
        rows: list[Row] = []
        beside: list[Row] = []
        files: dict[str, tuple[Shape, torch.dtype]] = {}
        for name, entry in stored.items():
            parts = pack(entry.tensor, entry.storage)
            for suffix, part in parts.items():
                size = part.numel() * part.dtype.itemsize
                shape, numbers, dtype = tuple(part.shape), part.numel(), _DTYPES[part.dtype]
                if FORM in parts and suffix == "":
                    shape, numbers, dtype = tuple(entry.tensor.shape), entry.tensor.numel(), entry.storage
                row = Row(name + suffix, entry.role, shape, 0 if suffix == FORM else numbers, dtype, size)
                (rows if entry.role in BOUND else beside).append(row)
                if entry.role in BOUND:
                    files[row.name] = (tuple(part.shape), part.dtype)
        return cls(tuple(rows), tuple(beside), file_bytes(files, meta))

    @property
    def floats(self) -> int:
        return sum(row.floats for row in self.rows)

    @property
    def beside_floats(self) -> int:
        return sum(row.floats for row in self.beside)

    def by_role(self) -> dict[str, int]:
        """Floats of each role that occurs."""
        roles: dict[str, int] = {}
        for row in self.rows + self.beside:
            roles[row.role] = roles.get(row.role, 0) + row.floats
        return roles

    def ipc(self, spec: Sized, beside: bool = False) -> float:
        """Equivalent images per class: floats / (classes * floats of an image), as the papers count."""
        floats = self.floats + (self.beside_floats if beside else 0)
        return floats / (spec.classes * image(spec))

    def json(self) -> dict[str, Any]:
        rows, beside = ([asdict(row) | {"shape": list(row.shape)} for row in part] for part in (self.rows, self.beside))
        totals = {"floats": self.floats, "bytes": self.bytes, "beside_floats": self.beside_floats}
        totals["beside_bytes"] = sum(row.bytes for row in self.beside)
        return {"rows": rows, "beside": beside, "by_role": self.by_role()} | totals


# --- the budget -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much may be stored: exactly one of the three; `ipc: 1` where YAML gives none."""

    ipc: float | None = None
    """Equivalent images per class: as the papers count it, so that the step size comes on top of the pixels."""
    floats: int | None = None
    """Numbers in the file."""
    bytes: int | None = None
    """Size of the file on disk; 200kB is 200,000."""

    def __post_init__(self) -> None:
        sizes = {name: size for name, size in asdict(self).items() if size is not None}
        if len(sizes) != 1:
            do = f"add budget.{next(iter(sizes))}=null" if sizes else "set budget.ipc=1"
            raise refuse("budget", sizes or "nothing", "exactly one of ipc, floats, bytes", do)
        name, size = next(iter(sizes.items()))
        positive(f"budget.{name}", size)

    @classmethod
    def from_plain(cls, mapping: Mapping[str, Any], where: str = "budget") -> Budget:
        sizes = {name: size for name, size in mapping.items() if size is not None or name not in fields_of(cls)}
        if isinstance(text := sizes.get("bytes"), str):
            sizes["bytes"] = size_of_text(text) if size_of_text(text) is not None else text
        return read(cls, sizes or {"ipc": 1.0}, where)

    def __str__(self) -> str:
        return next(f"{value} {name}" for name, value in asdict(self).items() if value is not None)

    def limit(self, spec: Sized, storage: str = "fp32") -> int:
        """The most floats of this storage type that the budget can hold (the scales of whole numbers included)."""
        if self.floats is not None:
            return self.floats
        if self.ipc is not None:
            return math.floor(self.ipc * spec.classes * image(spec) + 1e-6) + 1
        assert self.bytes is not None
        return math.floor(self.bytes / Storage.parse(storage).itemsize)

    def file_size(self, spec: Sized) -> int:
        """Bytes of the largest file: as given, or those of its numbers in fp32 and a header."""
        return self.bytes if self.bytes is not None else FLOAT * self.limit(spec) + HEADER

    def used(self, shapes: Shapes, spec: Sized, storage: Storages = "fp32") -> float:
        """Share of the budget that these tensors and a step size take, before a coder; at most 1 if they fit."""
        every = {
            name: (shape, "fp32" if role == "step" else storage if isinstance(storage, str) else storage(name, role))
            for name, (shape, role) in (dict(shapes) | dict(STEP)).items()
        }
        if self.bytes is None:
            return sum(count(*one) for one in every.values()) / self.limit(spec)
        parts = ((name, pack_shape(*one)) for name, one in every.items())
        return file_bytes({name + suffix: part for name, by in parts for suffix, part in by.items()}) / self.bytes

    def holds(self, shapes: Shapes, spec: Sized, storage: Storages = "fp32") -> bool:
        return self.used(shapes, spec, storage) <= 1
