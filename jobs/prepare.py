"""Decode a dataset once into fixed-size uint8 shards and a manifest; `data=prepared data.path=TO` reads them.

A shard is a fixed slice of the sorted listing: killed and submitted again, the bytes are the same.
"""

from __future__ import annotations

import shlex
import sys

from jobs import program, stage
from jobs.compose import Asked, command

KEYS = "rayd.data.prepare:PrepareConfig"


def act(asked: Asked) -> int:
    to = asked.own.to or asked.run.at("data")
    shards = prepared(asked, to, asked.own.per_shard)
    print(f"rayd: {to} " + (f"is whole: {shards} shards written" if shards else "is already done"))
    print(f"next: {program('experts')} {shlex.join(['data=prepared', f'data.path={to}', f'out={asked.run.out}'])}")
    return 0


def prepared(asked: Asked, to: str, per_shard: int) -> int:
    """Write the shards that are missing; how many there were."""
    from jobs.console import Line

    run, line, shards, images = asked.run, Line(), 0, 0
    place = run.scale.threads if run.scale.name == "inline" else run.scale
    for wrote in stage("prepare", run).prepare(run.data, to, per_shard, place):
        shards, images = shards + 1, images + wrote.rows
        line.show(f"prepare  {shards} shards, {images} images, {wrote.skipped} skipped in the last")
    if shards:
        line.show(f"prepare  {shards} shards, {images} images, done", last=True)
    return shards


if __name__ == "__main__":
    sys.exit(command("prepare", __doc__, act, KEYS))
