"""The trials of a search in time: every rung takes as long as the next, and the better half of its trials goes on.

What has ended is in files, one a pilot and one a leg, so that a command that was killed goes on with the rest. Where a
rung's time has run out meanwhile, its other trials count with what they had reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rayd.config import Run
from rayd.errors import Failed
from rayd.schema import parse, to_dict
from rayd.store import Store
from rayd.studies.auto.clock import Clock
from rayd.studies.auto.legs import Leg, Reached, follow, interrupted, pilot
from rayd.studies.auto.shares import Pilot
from rayd.studies.auto.space import Family, at
from rayd.studies.search.points import Trial

Work = Callable[[Run, Leg], Any]
Go = Callable[[Work, Sequence[Leg]], Iterator[tuple[Leg, Any]]]
"""Legs under way: in this process one after another, or as tasks."""
PILOT_STEPS = 2


@dataclass(frozen=True)
class Search:
    """Where the search keeps its files, its clock, who runs its legs and how many at once."""

    store: Store
    clock: Clock
    go: Go
    slots: int = 1
    say: Callable[[str], None] = print

    # ---- pilots ------------------------------------------------------------------------------------------------------

    def pilots(self, families: Sequence[Family], until: float) -> dict[str, Pilot]:
        """Two steps of each method, in order, until `until` of the clock; of one at least that works."""
        done = self.piloted()
        left = [family for family in families if family.name not in done]
        while left and (self.clock.used < until or all(one.refused for one in done.values())):
            some, left = left[: self.slots], left[self.slots :]
            legs = []
            for number, family in enumerate(some, len(done)):
                run = interrupted(
                    at(family.run, family.point), self.store.sub(f"pilots/{family.name}").uri, PILOT_STEPS
                )
                legs.append((family.name, Leg(number, to_dict(run), 0.0)))
            for leg, result in self.go(pilot, [leg for _, leg in legs]):
                name = next(name for name, one in legs if one.number == leg.number)
                done[name] = result
                self.store.write_json(f"pilots/{name}.json", asdict(result))
                self.say(f"pilot {name}: {told(result)}")
        return done

    def piloted(self) -> dict[str, Pilot]:
        """The pilots that have ended."""
        names = [name for name in self.store.list("pilots/") if name.count("/") == 1]
        return {name[7:-5]: parse(Pilot, self.store.read_json(name)) for name in names}

    # ---- rungs -------------------------------------------------------------------------------------------------------

    def trials(self, trials: Mapping[int, Trial], sizes: Sequence[int], end: float, pilots: Mapping[str, Pilot]) -> int:
        """All rungs, up to `end` of the clock; the number of the trial that is left."""
        alive = list(trials)
        first = (end - self.clock.used) / len(sizes) / -(-len(alive) // self.slots)
        for number, size in enumerate(sizes):
            plan = self._plan(
                number, alive[:size], (end - self.clock.used) / (len(sizes) - number), first, pilots, trials
            )
            reached = self.rung(number, plan["trials"], plan["until"], trials, plan["every"])
            values = {trial: one.accuracy for trial, one in reached.items() if one.accuracy is not None}
            alive = sorted(values, key=lambda trial: (-values[trial], trial))
            if not alive:
                why = next(
                    (one.failed for one in reached.values() if one.failed), "no trial came to its first validation"
                )
                raise Failed(f"rung {number}: {why}; give more hours, or name other methods: auto.families=[...]")
        return alive[0]

    def _plan(
        self, number: int, alive: list[int], seconds: float, first: float, pilots: Mapping[str, Pilot],
        trials: Mapping[int, Trial],
    ) -> dict[str, Any]:  # fmt: skip
        """Who is in a rung and until when; written before it begins."""
        name = f"rungs/{number}.json"
        if not self.store.exists(name):
            every = {str(trial): pilots[trials[trial].point["family"]].stretch(first) for trial in alive}
            if number:
                every = self.store.read_json("rungs/0.json")["every"]
            plan = {"trials": alive, "until": self.clock.used + seconds, "every": every}
            self.store.write_json(name, plan)
        return dict(self.store.read_json(name))

    def rung(
        self, number: int, alive: Sequence[int], until: float, trials: Mapping[int, Trial], every: Mapping[str, int]
    ) -> dict[int, Reached]:
        done: dict[int, Reached] = {}
        left = list(alive)
        while left:
            some, left = left[: self.slots], left[self.slots :]
            waves = 1 + -(-len(left) // self.slots)
            legs = []
            for trial in some:
                if self.store.exists(name := f"rungs/{number}/{trial:05d}.json"):
                    done[trial] = parse(Reached, self.store.read_json(name))
                    continue
                seconds = max(0.0, (until - self.clock.used) / waves)
                run = interrupted(trials[trial].run, self.at(trial), every[str(trial)])
                legs.append(Leg(trial, to_dict(run), seconds))
            for leg, result in self.go(follow, legs):
                done[leg.number] = result
                self.store.write_json(f"rungs/{number}/{leg.number:05d}.json", asdict(result))
                self.say(f"rung {number}, trial {leg.number} ({dials(trials[leg.number])}): {stands(result)}")
        return done

    def at(self, trial: int) -> str:
        return self.store.sub(f"trials/{trial:05d}").uri

    def reached(self) -> dict[int, list[Reached]]:
        """Every trial's legs, in order."""
        legs: dict[int, list[Reached]] = {}
        for name in sorted(self.store.list("rungs/")):
            _, _, *rest = name.split("/")
            if rest:
                trial = int(rest[0].removesuffix(".json"))
                legs.setdefault(trial, []).append(parse(Reached, self.store.read_json(name)))
        return legs


def dials(trial: Trial) -> str:
    """A trial's point as people read it."""
    family, *rest = trial.point.items()
    return ", ".join([str(family[1]), *(f"{path.split('.')[-1]} {value}" for path, value in rest)])


def stands(reached: Reached) -> str:
    value = "no validation yet" if reached.accuracy is None else f"{100 * reached.accuracy:.1f} % on validation"
    return f"step {reached.step}, {value}, {reached.seconds:.0f} s" + (f"; {reached.failed}" if reached.failed else "")


def told(one: Pilot) -> str:
    if one.refused:
        return f"left out: {one.refused}"
    times = f"start {one.start:.1f} s, {one.step:.2f} s a step, validation {one.validation:.1f} s"
    return f"{times}, {100 * one.accuracy:.1f} % on validation"
