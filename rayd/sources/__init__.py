"""Where datasets come from: finding them, listing them, decoding them into a cache."""

from __future__ import annotations

from rayd.data import DataConfig, Images


def load(config: DataConfig) -> dict[str, Images]:
    """The dataset's parts out of the cache, decoded into it if need be."""
    from rayd.sources import cache, formats

    return cache.images(config, formats.find(config))
