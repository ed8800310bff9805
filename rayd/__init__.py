"""rayd: an image dataset turned into a tiny synthetic one that trains networks almost as well, on Ray or a laptop.

In Python: `run`, `experts`, `distill`, `evaluate`, `controls`, `plan`, `load`, `export`, `verify`; own data is `Images`.

Rooms, in the order in which they may import each other:

scale      where the work runs, and the bound of every wait there
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

Below them all: choices (configs/, presets and changes), errors, extras (what may be missing), machine (threads, memory,
compilation), plugins (code of one's own), readable (numbers for people), schema (plain data to dataclasses), seeds, stats,
store (a folder behind a URI), verb (a room that can be called), version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rayd.errors import Failed, Refused
from rayd.version import VERSION

if TYPE_CHECKING:
    from rayd.api import Work, controls, distill, evaluate, experts, export, load, plan, run, verify
    from rayd.artifact.load import Artifact
    from rayd.data.own import Images

__version__ = VERSION
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

_WHERE = {"Artifact": "rayd.artifact.load", "Images": "rayd.data.own"}
"""Where a name is, if not in rayd.api."""
_ROOMS = ("distill", "evaluate", "experts", "run")
"""Names that are rooms too: the room itself can be called (rayd.verb)."""


def __getattr__(name: str) -> Any:
    """Names of the face are imported when they are first used."""
    if name not in __all__:
        raise AttributeError(f"module 'rayd' has no attribute {name!r}; it has {', '.join(__all__)}")
    if name in _ROOMS:
        return import_module(f"rayd.{name}")
    value = getattr(import_module(_WHERE.get(name, "rayd.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
