"""What decides the bytes of a distillation beside its config, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rayd.choices.plugins import source_hash
from rayd.config import Run
from rayd.data.images import Splits
from rayd.errors import Refused
from rayd.machine import can_compile


def surroundings_identity(run: Run, splits: Splits, device: torch.device) -> dict[str, Any]:
    """The images, the code of the run's own methods, the kind of device and the arithmetic on it."""
    compiled = run.method.compiled and can_compile(device.type)
    return {
        "images": {"train": splits.train.manifest["content"], "val": splits.val.manifest["content"]},
        "methods": source_hash(run.methods),
        "device": device.type,
        "arithmetic": "compiled" if compiled else "eager",
    }


def whole_identity(run: Run, splits: Splits, device: torch.device) -> dict[str, Any]:
    return {"config": run.identity(), **surroundings_identity(run, splits, device)}


def differing(there: Mapping[str, Any], here: Mapping[str, Any], where: str = "") -> list[str]:
    """Every key of both that has another value, as `key (there, here)`."""
    lines: list[str] = []
    for key in sorted({*there, *here}):
        a, b, path = there.get(key), here.get(key), f"{where}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differing(a, b, f"{path}.")
        elif a != b:
            lines.append(f"{path} ({_short(a)} there, {_short(b)} here)")
    return lines


def refuse_differing(what: str, there: Mapping[str, Any], here: Mapping[str, Any], do: str) -> None:
    """`what` is of another run: refused, with every key in which the two differ."""
    lines = differing(there, here)
    if lines:
        raise Refused(f"{what} of another run: {'; '.join(lines)}; {do}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
