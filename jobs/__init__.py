"""One entry a verb: compose the run, call its stage, end with an exit code."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayd.config import Run

INLINE = {
    "experts": "rayd.run.experts",
    "distill": "rayd.run.distill",
}


def stage(verb: str, run: Run) -> Any:
    """The module that does a verb: in this process under scale=inline, else on Ray, under the same names."""
    return import_module(INLINE[verb] if run.scale.name == "inline" else f"rayd.fleet.{verb}")
