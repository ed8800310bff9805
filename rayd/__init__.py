"""rayd: an image dataset turned into a tiny synthetic one that trains networks almost as well, on Ray or a laptop.

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

Below them all: errors, machine (threads, memory, compilation), readable (numbers for people), schema (plain data to
dataclasses), seeds, stats, store (a folder behind a URI), version.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rayd.version import VERSION

if TYPE_CHECKING:
    from rayd.artifact.load import Artifact
    from rayd.store import Store

__version__ = VERSION


def load(source: str | Path | Store) -> Artifact:
    """An artifact, checked against its card: a folder, a URI or a Store."""
    from rayd.artifact.load import load

    return load(source)
