"""Points that are done, a file each under `theory/`: an interrupted sweep goes on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rayd.errors import Refused
from rayd.schema import to_dict
from rayd.store import Store
from rayd.studies.theory.sweep import Point, TheoryConfig

FREE = ("d", "r", "width", "seeds")
"""What may change without making earlier points others."""


class Shelf:
    def __init__(self, out: str, config: TheoryConfig, seed: int) -> None:
        self.store = Store(out).sub("theory")
        asked = {name: one for name, one in to_dict(config).items() if name not in FREE} | {"seed": seed}
        if self.store.exists("plan.json"):
            there = self.store.read_json("plan.json")
            keys = [name for name in asked if there.get(name) != asked[name]]
            if keys:
                raise Refused(f"out={out}: holds a sweep with another {', '.join(keys)}; give another out")
        else:
            self.store.write_json("plan.json", asked)
        self.points = [point(self.store.read_json(name)) for name in self.store.list("points/")]

    def add(self, one: Point) -> None:
        self.points.append(one)
        self.store.write_json(f"points/d{one.d:04d}-r{one.r:02d}-L{one.width:05d}-{one.seed}.json", asdict(one))


def point(plain: dict[str, Any]) -> Point:
    return Point(**{**plain, "tried": tuple((int(m), float(e)) for m, e in plain["tried"])})
