"""The best set within a time: shares of it, the clock over several starts, points, a trial's end, and the whole command."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from jobs.compose import ask
from rayd.artifact.load import read_card
from rayd.config import Run
from rayd.data.images import Spec
from rayd.errors import Refused
from rayd.run.distill import distill
from rayd.schema import to_dict
from rayd.store import Store
from rayd.studies.auto import legs
from rayd.studies.auto.clock import Clock
from rayd.studies.auto.legs import Leg, Reached, ended, follow, interrupted, pilot
from rayd.studies.auto.rungs import Search
from rayd.studies.auto.shares import PLANNED, SLACK, Pace, Pilot, least, recipe_share, rungs
from rayd.studies.auto.space import AutoConfig, at, family_of, points, ranked, unfit
from tests.support.runs import small_run

ROOT = Path(__file__).resolve().parents[2]
SPEC = Spec((1, 8, 8), 10)
SPACE = {"storage": ["fp32", "int8", "int4"], "rank": [1, 2, 3, 99], "method.codec.bits": [1.0, 3.0]}


def small(codec: str, out: Path | str = "runs/none", **method: Any) -> Run:
    sentence = {"codec": {"name": codec}, "objective": {"name": "distribution", "batch_real": 8}, "steps": 10}
    more = {"compiled": False, "optimiser": {"name": "adam", "lr": 0.05}, **method}
    data, recipe = {"name": "digits", "limit": 200, "val": 100}, {"steps": 12, "seeds": 2, "batch": 64}
    return small_run(
        data=data, net={"width": 4}, recipe=recipe, method={**sentence, **more}, budget={"bytes": 3000}, out=str(out)
    )


# ---- shares --------------------------------------------------------------------------------------------------------------


def test_a_recipe_takes_the_share_of_its_steps_that_fits() -> None:
    pace = Pace(expert=10, start=1, step=0.5, network=8, control=12, real=20)
    assert recipe_share(pace, 1e9, 1e9) == 1
    shorter = pace.recipe(recipe_share(pace, 70, 1e9))
    assert shorter.table(PLANNED) == pytest.approx(70) and shorter.step == pace.step
    assert pace.recipe(recipe_share(pace, 1e9, 3)).control / 2 == pytest.approx(3), "two networks of a quarter"
    assert least(pace) > 10 + 1 + 2 * (2 * 0.5 + 4) + pace.table(), "the slack on top"


def test_rungs_are_halves_that_leave_each_trial_its_leg() -> None:
    pilots = {"a": Pilot(1, 0.5, 1, 0.4), "b": Pilot(2, 0.5, 1, 0.5)}
    leg = max(pilot.leg for pilot in pilots.values())
    for seconds, slots in ((1, 1), (40, 1), (400, 1), (400, 4), (10**6, 1)):
        sizes = rungs(seconds, pilots, slots, 32)
        assert sizes[-1] == 1 and sizes[0] <= 32
        assert all(before == 2 * after for before, after in pairwise(sizes))
        assert len(sizes) == 1 or seconds / len(sizes) / -(-sizes[0] // slots) >= leg
    assert len(rungs(400, pilots, 4, 32)) > len(rungs(400, pilots, 1, 32))


def test_stretches_are_long_against_their_validations() -> None:
    assert Pilot(start=1, step=0.5, validation=2).stretch(5) * 0.5 >= 4
    assert Pilot(start=1, step=0.5, validation=2).stretch(101) * 0.5 == pytest.approx(48)
    assert Pilot(start=1, step=50, validation=2).stretch(5) == 1


def test_a_clock_counts_over_all_starts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with Clock(store, 100, beat=0.05) as clock:
        time.sleep(0.3)
        kept = store.read_json("clock.json")["used"]
        assert 0.1 < kept <= clock.used, "written while it runs: a kill loses one beat"
        clock.mark("plan")
    again = Clock(store, 100)
    assert again.starts == 2 and again.used >= 0.3 and again.left <= 99.7
    again.mark("plan")
    again.mark("experts")
    (plan, took), (experts, _) = again.stages()
    assert (plan, experts) == ("plan", "experts") and took < 0.5


# ---- what is tried -------------------------------------------------------------------------------------------------------


def test_one_method_for_each_codec_comes_first() -> None:
    sentences = {"datm": ("pixel", "mtt"), "mtt": ("pixel", "mtt"), "dm": ("pixel", "distribution"),
                 "mine": ("half", "mtt"), "nsd": ("nsd", "mtt", "guidance")}  # fmt: skip
    assert ranked(sentences) == ["mtt", "nsd", "mine", "datm", "dm"]


def test_a_family_takes_the_dials_that_its_codec_accepts() -> None:
    config = AutoConfig(space=SPACE)
    lodc = family_of("lodc", small("lodc"), config, SPEC)
    assert lodc.point == {} and lodc.dials["method.codec.rank"].choices == (1, 2, 3)
    assert set(family_of("pixel", small("pixel"), config, SPEC).dials) == {
        "method.codec.storage",
        "method.optimiser.lr",
    }
    assert "method.codec.bits" in family_of("jpeg", small("jpeg"), config, SPEC).dials
    few = at(small("pixel"), {"budget.bytes": 1200})
    assert family_of("pixel", few, config, SPEC).point == {"method.codec.storage": "int8"}, (
        "fp32 holds no image a class"
    )
    with pytest.raises(Refused, match="budget"):
        family_of("pixel", at(few, {"budget.bytes": 200}), config, SPEC)
    with pytest.raises(Refused, match=r"auto\.space=budget\.ipc"):
        family_of("pixel", few, AutoConfig(space={"budget.ipc": [1]}), SPEC)


def test_a_rate_that_falls_over_all_steps_takes_no_part() -> None:
    run = small("pixel")
    assert unfit(run, run) == ""
    assert "beforehand" in unfit(small("pixel", optimiser={"name": "adam", "lr": 0.1, "decay": "cosine"}), run)


def test_points_begin_with_the_methods_as_they_are_and_differ() -> None:
    config = AutoConfig(space=SPACE)
    families = [family_of(name, small(name), config, SPEC) for name in ("lodc", "pixel")]
    trials = list(points(families, 8, 0, SPEC))
    assert [trial.point for trial in trials[:2]] == [{"family": "lodc"}, {"family": "pixel"}]
    assert [trial.number for trial in trials] == list(range(8))
    assert all(trial.size.bytes <= 3000 for trial in trials)
    assert len({json.dumps(trial.point, sort_keys=True) for trial in trials}) == 8
    assert [one.point for one in points(families, 8, 0, SPEC)] == [one.point for one in trials]


# ---- a trial -------------------------------------------------------------------------------------------------------------


def test_a_trial_that_is_stopped_is_a_run_of_so_many_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legs, "PATIENCE", 1e9)  # on a slow machine too
    trial = interrupted(small("lodc"), str(tmp_path / "trial"), 3)
    first = follow(trial, Leg(0, to_dict(trial), 1e-3))
    assert first.step == 3 and len(first.curve) == 1 and not first.failed
    second = follow(trial, Leg(0, to_dict(trial), 1e-3))
    assert second.step == 6 and second.curve[0] == first.curve[0], "it went on"
    assert follow(trial, Leg(0, to_dict(trial), 0.0)).step == 6, "no seconds, no step"
    run = ended(trial, str(tmp_path / "run"), 6)
    for _ in distill(run):
        raise AssertionError("no step is left")
    whole = small("lodc", tmp_path / "whole", steps=6, validate=3, checkpoint=3, select="best_val")
    for _ in distill(whole):
        pass
    one, other = (Store(tmp_path / name / "artifact") for name in ("run", "whole"))
    assert one.read("codec.safetensors") == other.read("codec.safetensors")
    assert read_card(one)["fingerprint"] == read_card(other)["fingerprint"] == whole.fingerprint()
    assert read_card(one)["claim"] == read_card(other)["claim"]


def test_a_pilot_measures_and_a_method_that_fails_is_left_out(tmp_path: Path) -> None:
    run = interrupted(small("lodc"), str(tmp_path / "a"), 2)
    one = pilot(run, Leg(0, to_dict(run), 0))
    assert one.step > 0 and one.validation > 0 and 0 <= one.accuracy <= 1 and not one.refused
    lost = interrupted(small("lodc", objective={"name": "mtt"}), str(tmp_path / "b"), 2)
    assert pilot(lost, Leg(0, to_dict(lost), 0)).refused


def test_the_better_half_goes_on_and_a_killed_rung_is_not_repeated(tmp_path: Path) -> None:
    families = [family_of("lodc", small("lodc"), AutoConfig(space=SPACE), SPEC)]
    trials = {trial.number: trial for trial in points(families, 4, 0, SPEC)}
    value, asked = {0: 0.1, 1: 0.4, 2: 0.3, 3: None}, list[int]()

    def go(work: Any, waiting: Any) -> Any:
        for leg in waiting:
            if len(asked) == 3:
                raise KeyboardInterrupt
            asked.append(leg.number)
            yield leg, Reached(2, value[leg.number], ((2, value[leg.number] or 0.0),), 1.0)

    pilots = {"lodc": Pilot(0, 0.1, 0.1, 0.2)}
    with Clock(Store(tmp_path), 60) as clock:
        search = Search(Store(tmp_path), clock, go, 1, lambda text: None)
        with pytest.raises(KeyboardInterrupt):
            search.trials(trials, (4, 2, 1), 50, pilots)
        assert asked == [0, 1, 2]
        asked[:] = [9] * 4
        assert search.trials(trials, (4, 2, 1), 50, pilots) == 1
        assert asked[4:] == [3, 1, 2, 1], "the one that was left, the better half, the best"


# ---- the command ---------------------------------------------------------------------------------------------------------

WORDS = ("preset=smoke", "budget.ipc=null", "budget.bytes=4kB")


def job(out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "jobs.auto", *WORDS, f"out={out}", *words]


def test_hours_that_hold_nothing_are_refused_with_the_least(tmp_path: Path) -> None:
    done = subprocess.run(
        job(tmp_path, "hours=0.0001", "auto.families=[lodc_dm]"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "hours=0.0001: allowed is at least 0.0" in done.stderr, done.stderr


def check_whole(out: Path, hours: float) -> dict[str, Any]:
    """It ended in time, and its line is the run that it left."""
    outcome: dict[str, Any] = json.loads((out / "auto/outcome.json").read_text())
    assert outcome["used"] <= 1.1 * 3600 * hours
    assert (out / "auto/index.html").is_file() and (out / "report/index.html").is_file()
    words = shlex.split(outcome["line"])
    card = read_card(Store(out / "artifact"))
    again = ask("pipeline", tuple(words[words.index("jobs.pipeline") + 1 :]), "jobs.pipeline:Keys").run
    assert again.fingerprint() == card["fingerprint"] and card["reads"] == 1
    assert outcome["line"] in card["claim"]["chosen"]
    assert {"distilled", "herding@jpeg"} <= {row["set"] for row in card["scores"].values()}
    assert card["ledger"]["bytes"] <= 4000
    return outcome


def test_a_set_within_half_a_minute(tmp_path: Path) -> None:
    hours = 0.008
    words = job(tmp_path, f"hours={hours}", "auto.families=[lodc_dm, jpeg]")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = check_whole(tmp_path, hours)
    assert "the winner" in outcome["text"] and "time:" in outcome["text"]
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout == done.stdout, "it is done"


@pytest.mark.slow
@pytest.mark.parametrize("after", [12, 40, 70, 95])
def test_killed_and_started_again_it_uses_its_hours_in_sum(tmp_path: Path, after: int) -> None:
    hours = 0.03
    words, began = job(tmp_path, f"hours={hours}"), time.monotonic()
    first = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        first.wait(after)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = check_whole(tmp_path, hours)
    assert "2 starts" in outcome["text"]
    assert (1 - 5 * SLACK) * 3600 * hours < time.monotonic() - began < 1.1 * 3600 * hours


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray_a_rung_is_tasks(tmp_path: Path) -> None:
    done = subprocess.run(job(tmp_path, "hours=0.04", "scale=laptop"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    check_whole(tmp_path, 0.04)
