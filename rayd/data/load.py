"""A dataset as its three splits: found, decoded into the cache the first time, mapped every time after."""

from __future__ import annotations

from dataclasses import replace

import torch

from rayd.data.config import DataConfig
from rayd.data.images import Images, Splits, seeded_order
from rayd.data.sources import cache, formats
from rayd.errors import refuse


def load(config: DataConfig) -> Splits:
    """Training, validation and test images; the validation images are carved out of the training set."""
    parts = cache.images(config, formats.find(config))
    train, val = _carve(config, parts["train"])
    given = {"mean": list(config.mean), "std": list(config.std)} if config.mean and config.std else None
    channels = train.spec.shape[0]
    if given and {len(given["mean"]), len(given["std"])} != {channels}:
        raise refuse("data.mean", config.mean, f"one number for each of the {channels} channels, as in data.std")
    splits = [replace(part, manifest={**part.manifest, "given": given}) for part in (train, val, parts["test"])]
    return Splits(*splits)


def _carve(config: DataConfig, images: Images) -> tuple[Images, Images]:
    """Training and validation images."""
    n = len(images)
    n_val = int(config.val) if config.val >= 1 else round(config.val * min(n, config.limit or n))
    n_train = min(n - n_val, config.limit or n)
    if n_train < 1:
        raise refuse("data.val", config.val, f"fewer than the {n} training images")
    if config.split == "next":
        return images.select(torch.arange(n_train)), images.select(torch.arange(n_train, n_train + n_val))
    order = images.manifest.get("order")
    if order == [config.seed, n_val]:
        return images.select(torch.arange(n_val, n_val + n_train)), images.select(torch.arange(n_val))
    drawn = seeded_order(n, config.seed)
    return images.select(drawn[n_val : n_val + n_train].sort().values), images.select(drawn[:n_val].sort().values)
