"""rayd: an image dataset turned into a tiny synthetic one that trains networks almost as well, on Ray or a laptop."""

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
