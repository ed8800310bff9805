"""jobs.pipeline killed at any moment: the folder stays readable, the same command goes on, the result is the same."""

from __future__ import annotations

import json
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

import rayd
from rayd.store import Lease, Store
from rayd.store.files import TEMPORARY
from tests.support.hashes import hashes
from tests.support.kills import STAGES, Change, Forks, words

LAST_S = 2.0
"""Before the end of a stage, every change of a file is a moment."""


@dataclass(frozen=True)
class Whole:
    """The undisturbed run."""

    lasting: dict[str, str]
    moments: dict[str, list[int]]
    """Of each stage: numbers of the changes before which a job is killed."""
    changes: list[Change]
    seconds: float

    def named(self, *endings: str) -> list[int]:
        """The last moments at which such a file changes, one of each."""
        every = [i for moments in self.moments.values() for i in moments]
        return [max(i for i in every if self.changes[i].name.endswith(ending)) for ending in endings]


def lasting(out: Path) -> dict[str, str]:
    """Everything that a run leaves for good, but for times."""
    parts = ("data", "experts", "artifact", "report/tables")
    every = {f"{part}/{name}": sha256 for part in parts for name, sha256 in hashes(out / part).items()}
    return {name: sha256 for name, sha256 in every.items() if Path(name).name not in ("timing.json", "plan.csv")}


@pytest.fixture(scope="module")
def whole(forked: tuple[Forks, Path]) -> Whole:
    process, folder = forked
    ended = process.run(words(folder / "whole"))
    assert ended.code == 0, ended.said
    moments: dict[str, list[int]] = {stage: [] for stage in STAGES}
    for i, change in enumerate(ended.changes):
        visible = change.event in ("os.rename", "os.link", "os.remove") and not change.name.endswith(TEMPORARY)
        if visible and change.stage and change.seconds > ended.ends[change.stage] - LAST_S:
            moments[change.stage].append(i)
    return Whole(lasting(folder / "whole"), moments, ended.changes, max(ended.ends.values()))


def readable(out: Path) -> None:
    """Whatever a killed job left: no artifact, or one that loads."""
    if (out / "artifact" / "card.json").exists():
        rayd.load(out / "artifact")


def finished(out: Path, whole: Whole, told: str) -> None:
    assert json.loads((out / "artifact" / "card.json").read_text())["reads"] == 1, told
    ours = {
        name: sha256 for name, sha256 in whole.lasting.items() if (out / "report").exists() or "report/" not in name
    }
    assert lasting(out) == ours, f"{told}: the result differs"
    with Lease(Store(out)):
        assert len(Store(out).list("lease/")) == 1, f"{told}: the lease of a dead process"


def killed(
    forked: tuple[Forks, Path], whole: Whole, name: str, moments: list[int | float], last: str = STAGES[-1]
) -> None:
    """A run that is killed at each of these moments, one after another, and then left alone."""
    process, folder = forked
    out, told = folder / name, f"killed at {[whole.changes[m] if isinstance(m, int) else m for m in moments]}"
    for moment in moments:
        ended = process.run(words(out, last), **{"before" if isinstance(moment, int) else "after": moment})
        assert ended.code in (-signal.SIGKILL, 0), f"{told}: {ended.said}"
        readable(out)
    ended = process.run(words(out, last))
    assert ended.code == 0, f"{told}: {ended.said}"
    finished(out, whole, told)
    shutil.rmtree(out)


def test_ten_moments_of_a_pipeline(forked: tuple[Forks, Path], whole: Whole) -> None:
    """The last write of five files on which the rest depends, and one moment of each stage."""
    rng = random.Random(1)
    chosen = whole.named("/manifest.json", "buffer.json", "identity.json", "/card.json", "controls.json")
    chosen += [rng.choice(whole.moments[stage]) for stage in STAGES]
    for number, moment in enumerate(chosen):
        last = "report" if whole.changes[moment].stage == "report" else "evaluate"
        killed(forked, whole, f"ten-{number}", [moment], last)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_write_of_the_last_two_seconds_of_a_stage(forked: tuple[Forks, Path], whole: Whole, stage: str) -> None:
    """Every third of these runs is killed once more as it goes on."""
    rng = random.Random(2)
    for number, moment in enumerate(whole.moments[stage]):
        again = [rng.randrange(30)] if number % 3 == 0 else []
        killed(forked, whole, f"{stage}-{number}", [moment, *again])


@pytest.mark.slow
def test_any_moment(forked: tuple[Forks, Path], whole: Whole) -> None:
    """As often as makes a hundred moments with the writes of every stage."""
    rng = random.Random(3)
    for number in range(max(20, 100 - sum(map(len, whole.moments.values())))):
        killed(forked, whole, f"any-{number}", [rng.uniform(0, whole.seconds) for _ in range(1 + number % 3)])
