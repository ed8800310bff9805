"""Named tensors as bytes and back, in safetensors files."""

from __future__ import annotations

from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from rayd.errors import Refused


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The same tensors give the same bytes."""
    return dump_tensors({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def from_bytes(data: bytes, name: str = "tensor file") -> dict[str, Tensor]:
    """The tensors that `to_bytes` wrote; `name` of the file, for the refusal of one that is damaged."""
    try:
        return parse_tensors(data)
    except SafetensorError as error:
        raise Refused(f"{name}: not a readable safetensors file ({error}); fetch it again") from error
