"""rayd: an image dataset turned into a tiny synthetic one that trains networks almost as well, on Ray or a laptop.

In Python: `run`, `experts`, `distill`, `evaluate`, `controls`, `plan`, `load`, `export`, `verify`; own data is `Images`.

Rooms, in the order in which they may import each other:

data       images: found, decoded once, split, transformed, augmented
nets       networks as pure functions of one vector
experts    networks trained on the real images, and the buffer of their parameters
evaluate   how a set of images is scored
distill    what every method stands on
methods    one paper, one file
artifact   what a distillation leaves
config     a Run
run        the stages of a Run, one file a verb
report     the page of a run
studies    questions asked with whole runs
fleet      the stages of a Run on Ray
api        the verbs in Python

Below them all: errors, schema (plain data to dataclasses), choices (configs/, presets, changes, code of one's own), seeds,
numbers (intervals, and texts for people), machine (threads, memory, compilation), store (a folder behind a URI).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rayd.errors import Failed, Refused

if TYPE_CHECKING:
    from rayd.api import Work, controls, distill, evaluate, experts, export, load, plan, run, verify
    from rayd.artifact.load import Artifact
    from rayd.data.own import Images

__all__ = [
    "Artifact",
    "Failed",
    "Images",
    "Refused",
    "Work",
    "controls",
    "distill",
    "evaluate",
    "experts",
    "export",
    "load",
    "plan",
    "run",
    "verify",
]

_WHERE = {"Artifact": "rayd.artifact.load", "Images": "rayd.data.own", "__version__": "rayd.machine"}
"""Where a name is, if not in rayd.api."""
_ROOMS = ("distill", "evaluate", "experts", "run")
"""Names that are rooms too: the room itself can be called (rayd.choices.verb)."""


def __getattr__(name: str) -> Any:
    """Names of the face are imported when they are first used."""
    if name not in (*__all__, "__version__"):
        raise AttributeError(f"module 'rayd' has no attribute {name!r}; it has {', '.join(__all__)}")
    if name in _ROOMS:
        return import_module(f"rayd.{name}")
    value = getattr(import_module(_WHERE.get(name, "rayd.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
