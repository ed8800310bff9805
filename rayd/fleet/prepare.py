"""Preparing a dataset with Ray Data: units stream through a pool of actors, each of which opens the dataset once.

Only unit numbers travel through Ray; pictures go from the source to the store within an actor, so neither the object
store nor any process grows with the dataset. A lost actor's unit is run again and writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray.data
from ray.data import ActorPoolStrategy

from rayd.config import ScaleConfig
from rayd.data.config import DataConfig
from rayd.data.prepare import ImageShard, Preparation, Wrote
from rayd.schema import parse, to_dict


class Writer:
    """An actor of the pool."""

    def __init__(self, data: dict[str, Any], to: str, per_shard: int, threads: int) -> None:
        self.work = Preparation(parse(DataConfig, data, "data"), to, per_shard, threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        columns = (batch[name].tolist() for name in ImageShard.__dataclass_fields__)
        wrote = [self.work.write(ImageShard(*unit)) for unit in zip(*columns, strict=True)]
        return {name: [getattr(one, name) for one in wrote] for name in Wrote.__dataclass_fields__}


def prepare(config: DataConfig, to: str, per_shard: int, scale: ScaleConfig) -> Iterator[Wrote]:
    """As rayd.data.prepare.prepare, in parallel; Ray is up already."""
    work = Preparation(config, to, per_shard, scale.threads)
    work.agree()
    pending = work.pending()
    if pending:
        rows = [{name: getattr(unit, name) for name in ImageShard.__dataclass_fields__} for unit in pending]
        size = min(scale.actors, len(rows)) or None
        pool = ActorPoolStrategy(size=size) if size else ActorPoolStrategy(min_size=1, max_size=len(rows))
        written = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Writer,
            fn_constructor_kwargs={
                "data": to_dict(config),
                "to": work.store.uri,
                "per_shard": per_shard,
                "threads": scale.threads,
            },
            batch_size=1,
            compute=pool,
            num_cpus=scale.cpus,
        )
        for row in written.iter_rows():
            yield Wrote(**row)
    work.finish()
