"""rayd: an image dataset turned into a tiny synthetic one that trains networks almost as well, on Ray or a laptop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayd.artifact import Artifact
    from rayd.distill.contract import Codec
    from rayd.store import Store

__version__ = "0.1.0"


def load(source: str | Path | Store | Callable[[str], bytes]) -> Artifact:
    """An artifact, checked against its card: a folder, a URI, a Store, or a function of file names."""
    from rayd import artifact

    return artifact.load(source, rebuild)


def rebuild(artifact: Artifact) -> Codec:
    """The codec that an artifact was saved from: its class by name, its resolved Config, its stored tensors."""
    import torch

    from rayd.errors import refuse
    from rayd.methods import CODECS
    from rayd.schema import parse

    plain = dict(artifact.card["codec"])
    name = plain.pop("name", None)
    if name not in CODECS:
        raise refuse("card.codec.name", name, " | ".join(CODECS), "a codec of one's own: artifact.load(path, build)")
    config = parse(CODECS[name].Config, plain, "card.codec")
    codec: Codec = config.build(artifact.spec, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for key, one in codec.stored().items():
            one.tensor.copy_(artifact.stored[key].tensor)
    return codec
