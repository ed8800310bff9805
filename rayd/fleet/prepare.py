"""Preparing a dataset with Ray Data: units stream through a pool of actors, each of which opens the dataset once.

Only unit numbers travel through Ray; pictures go from the source to the store within an actor, so neither the object
store nor any process grows with the dataset. Ray Data runs a lost actor's unit again, which writes the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import GetTimeoutError, RayError

from rayd.choices import plugins
from rayd.config.scale import ScaleConfig
from rayd.data.config import DataConfig
from rayd.data.prepare import ImageShard, Preparation, Wrote
from rayd.errors import Failed
from rayd.fleet import cluster
from rayd.fleet.tasks import first_line, raised
from rayd.fleet.watch import Pulse, Watch, beating
from rayd.schema import parse, to_dict
from rayd.store import StoreConfig, configure
from rayd.store.patience import current


class Writer:
    """An actor of the pool."""

    def __init__(
        self,
        data: dict[str, Any],
        folder: str | None,
        to: str,
        per_shard: int,
        threads: int,
        store: dict[str, Any],
        pulse: Pulse,
    ) -> None:
        """`folder`: of a format of one's own."""
        self.pulse, self.name = pulse, f"prepare {os.getpid()}"
        configure(parse(StoreConfig, store, "store"))
        with beating(pulse, self.name, stays=True), plugins.using(plugins.load(folder)):
            self.work = Preparation(parse(DataConfig, data, "data"), to, per_shard, threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        columns = (batch[name].tolist() for name in ImageShard.__dataclass_fields__)
        with beating(self.pulse, self.name, stays=True):
            rows = [self.work.write(ImageShard(*unit)) for unit in zip(*columns, strict=True)]
        return {name: [getattr(row, name) for row in rows] for name in Wrote.__dataclass_fields__}


def prepare(config: DataConfig, to: str, per_shard: int, scale: ScaleConfig) -> Iterator[Wrote]:
    """As rayd.data.prepare.prepare, in parallel."""
    cluster.start(scale)
    need, labels = {"CPU": float(scale.cpus)}, scale.selector("prepare")
    cluster.require(need, max(1, scale.actors), "actor that prepares", scale.wait, labels)
    work = Preparation(config, to, per_shard, scale.threads)
    work.agree()
    pending = work.pending()
    if pending:
        rows = [{name: getattr(unit, name) for name in ImageShard.__dataclass_fields__} for unit in pending]
        size = min(scale.actors, len(rows)) or None
        pool = ActorPoolStrategy(size=size) if size else ActorPoolStrategy(min_size=1, max_size=len(rows))
        folder = config.own.folder if config.own else None
        shared = {"data": to_dict(config), "folder": folder, "to": work.store.uri, "store": to_dict(current())}
        shared |= {"per_shard": per_shard, "threads": scale.threads}
        DataContext.get_current().wait_for_min_actors_s = round(scale.startup)
        with Watch(scale, work.store.uri, "prepare") as watch:
            shards = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                Writer,
                fn_constructor_kwargs={**shared, "pulse": watch.pulse},
                batch_size=1,
                compute=pool,
                num_cpus=scale.cpus,
                label_selector=labels or None,
            )
            try:
                for row in shards.iter_rows():
                    yield Wrote(**row)
            except GetTimeoutError as error:
                raise Failed(
                    f"prepare: {pool.min_size} actors did not start within scale.startup={scale.startup:g} s; raise it, "
                    "or set scale.actors, and run the same command again"
                ) from error
            except (RayError, SystemError) as error:
                why = f"prepare: {first_line(error)}; the shards that are written stay: run the same command again"
                raise raised(error) or Failed(why) from error
    work.finish()
