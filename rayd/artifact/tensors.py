"""Named tensors as bytes, and files written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from rayd.errors import Refused

Read = Callable[[str], bytes]
Write = Callable[[str, bytes], object]


def to_bytes(tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> bytes:
    """Named tensors and, where there is something to say, a JSON-able mapping; the same input gives the same bytes."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return dump_tensors(plain, {"rayd": json.dumps(dict(meta), sort_keys=True)} if meta else None)


def from_bytes(data: bytes, what: str = "tensor file") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `to_bytes` was given."""
    try:
        tensors = parse_tensors(data)
    except SafetensorError as error:
        raise Refused(f"{what}: not a readable safetensors file ({error}); fetch it again") from error
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    meta = json.loads(header.get("__metadata__", {}).get("rayd", "{}"))
    return tensors, meta


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
    """All of the file or none of it."""
    write_file(Path(path), to_bytes(tensors, meta))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return from_bytes(Path(path).read_bytes(), str(path))


def write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def folder_writer(folder: str | Path) -> Write:
    return lambda name, data: write_file(Path(folder) / name, data)
