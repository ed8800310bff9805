"""A dataset as its three splits: found, decoded into the cache the first time, mapped every time after."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch

from rayd.data.builder import cache_folder
from rayd.data.config import DataConfig
from rayd.data.images import Images, Splits, seeded_order
from rayd.data.sources import cache, formats
from rayd.errors import refuse
from rayd.schema import fingerprint

MOST_OPEN = 4
_opened: OrderedDict[tuple[Any, ...], Splits] = OrderedDict()
"""The datasets this process opened last."""


def load(config: DataConfig) -> Splits:
    """Training, validation and test images; the validation images are carved out of the training set.

    A process opens a dataset once. Its files are looked at each time: other names, sizes or times are another dataset.
    """
    source = formats.find(config)
    key = fingerprint(config), fingerprint(source.identity), source.where, cache_folder()
    if key not in _opened:
        _opened[key] = _split(config, cache.images(config, source))
    _opened.move_to_end(key)
    while len(_opened) > MOST_OPEN:
        _opened.popitem(last=False)
    return _opened[key]


def _split(config: DataConfig, parts: dict[str, Images]) -> Splits:
    train, val = _carve(config, parts["train"])
    channels = train.spec.shape[0]
    if config.mean and config.std:
        if {len(config.mean), len(config.std)} != {channels}:
            raise refuse("data.mean", config.mean, f"one number for each of the {channels} channels, as in data.std")
        statistics = {"mean": list(config.mean), "std": list(config.std)}
    else:
        statistics = None
    splits = (train, val, parts["test"])
    return Splits(*(replace(part, manifest=part.manifest | {"given": statistics}) for part in splits))


def _carve(config: DataConfig, images: Images) -> tuple[Images, Images]:
    """Training and validation images."""
    n = len(images)
    n_val = int(config.val) if config.val >= 1 else round(config.val * min(n, config.limit or n))
    n_train = min(n - n_val, config.limit or n)
    if n_train < 1:
        raise refuse("data.val", config.val, f"fewer than the {n} training images")
    if config.split == "next":
        return images.select(torch.arange(n_train)), images.select(torch.arange(n_train, n_train + n_val))
    order = seeded_order(n, config.seed)
    return images.select(order[n_val : n_val + n_train].sort().values), images.select(order[:n_val].sort().values)
