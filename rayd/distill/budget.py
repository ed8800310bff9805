"""What is stored, counted: every number by role, in floats, in equivalent images per class and in bytes on disk.

The rule that keeps it honest: a float is a number in the saved file. An artifact carries what `packed()` makes of
`Stored` tensors, and the ledger counts those packed tensors, the scales of an int8 tensor included; nothing is free.

The budget binds the roles of `BOUND`, which lie together in one file. What a consumer also needs (`BESIDE`) is listed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from rayd.errors import Refused, refuse
from rayd.schema import fields_of, positive, read

BOUND = ("pixels", "factors", "decoder", "labels", "step")
BESIDE = ("transform", "teacher")
STORAGE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
SCALE = ".scale"
"""Suffix of the tensor that holds the scales of an int8 tensor."""

Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, str]]
"""What would be stored: name -> (shape, role)."""
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


# --- storage types --------------------------------------------------------------------------------------------------


def pack(tensor: Tensor, storage: str) -> dict[str, Tensor]:
    """The tensors a file holds for one stored tensor: `""` and, for int8, its scales (one per row of the first axis).

    Integer tensors are kept as they are, and so is, for int8, what has fewer than two axes. The scale keeps eight bits,
    so that 127 * scale is exact and packing what was unpacked gives the same bytes.
    """
    if storage not in STORAGE:
        raise refuse("storage", storage, " | ".join(STORAGE))
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return {"": tensor}
    if storage != "int8":
        return {"": _finite(tensor, STORAGE[storage])}
    if tensor.ndim < 2:
        return {"": tensor.float()}
    rows_RD = tensor.float().flatten(1)
    scale_R = (rows_RD.abs().amax(1) / 127).to(torch.bfloat16)
    scale_R = torch.where(scale_R == 0, torch.ones_like(scale_R), scale_R)
    levels_RD = (rows_RD / scale_R.float()[:, None]).round().clamp(-127, 127)
    return {"": levels_RD.to(torch.int8).view(tensor.shape), SCALE: scale_R}


def unpack(tensors: Mapping[str, Tensor]) -> Tensor:
    """The fp32 tensor that `pack` stored (an integer tensor as it is)."""
    tensor = tensors[""]
    if SCALE in tensors:
        rows = tensors[SCALE]
        if (
            tensor.dtype != torch.int8
            or tensor.ndim < 2
            or rows.shape != tensor.shape[:1]
            or not rows.is_floating_point()
        ):
            raise refuse("int8", tuple(tensor.shape), f"rows of int8 with a scale each, not {tuple(rows.shape)} scales")
        return (tensor.float().flatten(1) * tensors[SCALE].float()[:, None]).view(tensor.shape)
    return tensor.float() if tensor.is_floating_point() else tensor


def _finite(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    limit = torch.finfo(dtype).max
    return tensor.clamp(-limit, limit).to(dtype)


def pack_shape(shape: Shape, storage: str) -> dict[str, tuple[Shape, torch.dtype]]:
    """What `pack` would give for a floating tensor of this shape: suffix -> (shape, dtype)."""
    if storage != "int8":
        return {"": (shape, STORAGE[storage])}
    if len(shape) < 2:
        return {"": (shape, torch.float32)}
    return {"": (shape, torch.int8), SCALE: (shape[:1], torch.bfloat16)}


@dataclass(frozen=True)
class Stored:
    """A tensor that an artifact must carry, what it is for, and in which type it is written."""

    tensor: Tensor
    role: str
    storage: str = "fp32"

    def __post_init__(self) -> None:
        if self.role not in BOUND + BESIDE:
            raise refuse("role", self.role, " | ".join(BOUND + BESIDE))
        if self.storage not in STORAGE:
            raise refuse("storage", self.storage, " | ".join(STORAGE))

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
        name: unpack({"": tensor} | ({SCALE: tensors[name + SCALE]} if name + SCALE in tensors else {}))
        for name, tensor in tensors.items()
        if not name.endswith(SCALE)
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
            for suffix, part in pack(entry.tensor, entry.storage).items():
                size = part.numel() * part.dtype.itemsize
                row = Row(name + suffix, entry.role, tuple(part.shape), part.numel(), _DTYPES[part.dtype], size)
                (rows if entry.role in BOUND else beside).append(row)
                if entry.role in BOUND:
                    files[row.name] = (row.shape, part.dtype)
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
    """Size of the file on disk."""

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
        return read(cls, sizes or {"ipc": 1.0}, where)

    def __str__(self) -> str:
        return next(f"{value} {name}" for name, value in asdict(self).items() if value is not None)

    def limit(self, spec: Sized, storage: str = "fp32") -> int:
        """The most floats of this storage type that the budget can hold (the scales of int8 included)."""
        if self.floats is not None:
            return self.floats
        if self.ipc is not None:
            return math.floor(self.ipc * spec.classes * image(spec) + 1e-6) + 1
        assert self.bytes is not None
        return self.bytes // STORAGE[storage].itemsize

    def used(self, shapes: Shapes, spec: Sized, storage: str = "fp32") -> float:
        """Share of the budget that these tensors and a step size take; at most 1 if they fit."""
        files = {
            name + suffix: part
            for name, (shape, role) in (dict(shapes) | dict(STEP)).items()
            for suffix, part in pack_shape(shape, "fp32" if role == "step" else storage).items()
        }
        if self.bytes is not None:
            return file_bytes(files) / self.bytes
        return sum(math.prod(shape) for shape, _ in files.values()) / self.limit(spec)

    def holds(self, shapes: Shapes, spec: Sized, storage: str = "fp32") -> bool:
        return self.used(shapes, spec, storage) <= 1
