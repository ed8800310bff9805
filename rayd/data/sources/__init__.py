"""Where datasets come from: finding them, listing them, decoding them into a cache."""

from __future__ import annotations

from rayd.data.config import DataConfig
from rayd.data.images import Images


def load(config: DataConfig) -> dict[str, Images]:
    """The dataset's parts out of the cache, decoded into it if need be."""
    from rayd.data.sources import cache, formats

    return cache.images(config, formats.find(config))
