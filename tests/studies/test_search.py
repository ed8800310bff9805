"""The search: points by plan, who stops, the table that survives, the front, how much dials mattered, trials on Ray."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayd.config import Run
from rayd.data.images import Spec
from rayd.errors import Refused
from rayd.schema import parse, to_dict
from rayd.store import Store
from rayd.studies.search.asha import Rungs, percentile
from rayd.studies.search.outcome import conclude, front, grouped, importance, text, winners
from rayd.studies.search.page import html
from rayd.studies.search.points import plan
from rayd.studies.search.space import Dial, SearchConfig, experts_for
from rayd.studies.search.trials import Size, TrialRow, TrialTable, curve_of, search_inline
from rayd.studies.search.winner import yaml_text
from tests.support.runs import small_run

ROOT = Path(__file__).resolve().parents[2]
SPEC = Spec((1, 8, 8), 10)
PLAIN: dict[str, Any] = {
    "data": {"name": "digits", "limit": 200, "val": 100},
    "net": {"width": 4},
    "expert": {"experts": 2, "epochs": 3, "batch": 64, "precision": "fp32", "compiled": False},
    "recipe": {"steps": 12, "seeds": 2, "batch": 64},
    "method": {
        "codec": {"name": "lodc"},
        "objective": {"batch_real": 8},
        "steps": 30,
        "compiled": False,
        "optimiser": {"name": "adam", "lr": 0.1},
    },
    "budget": {"ipc": 2},
}
SEARCH: dict[str, Any] = {
    "space": {"rank": [1, 2, 3, 4], "method.optimiser.lr": {"low": 0.001, "high": 0.3, "log": True}},
    "trials": 4, "steps": 8, "every": 2, "grace": 2,
}  # fmt: skip


def base(out: Path, **more: Any) -> Run:
    return small_run(**{**PLAIN, "out": str(out), **more})


def config(**more: Any) -> SearchConfig:
    return parse(SearchConfig, {**SEARCH, **more})


# ---- the space -----------------------------------------------------------------------------------------------------


def test_points_come_from_the_plan(tmp_path: Path) -> None:
    short, long = (plan(base(tmp_path), config(trials=n), SPEC).trials for n in (3, 6))
    assert [t.point for t in long[:3]] == [t.point for t in short]
    assert len({json.dumps(t.point) for t in long}) == 6
    for trial in long:
        assert trial.run.method.codec.rank == trial.point["method.codec.rank"] in (1, 2, 3, 4)
        assert 0.9 < trial.size.fill <= 1.0
        assert (trial.run.method.steps, trial.run.method.validate, trial.run.method.checkpoint) == (8, 2, 2)


def test_bits_are_a_dial_at_fixed_bytes_and_a_set_of_jpeg_files_is_as_large_as_its_budget(tmp_path: Path) -> None:
    families = {
        "lodc": {"fixed": {"method.codec": {"name": "lodc"}}, "space": {"storage": ["fp32", "int8", "int4", "int2"]}},
        "jpeg": {"fixed": {"method.codec": {"name": "jpeg"}}, "space": {"method.codec.bits": [1.0, 2.0]}},
    }
    asked = config(space={}, families=families, searcher="grid", trials=99)
    trials = plan(base(tmp_path, budget={"bytes": 6000}), asked, SPEC).trials
    by_storage = {t.point["method.codec.storage"]: t.size for t in trials if t.point["family"] == "lodc"}
    assert [size.images for size in by_storage.values()] == sorted(size.images for size in by_storage.values())
    assert by_storage["int4"].images > 5 * by_storage["fp32"].images
    assert all(size.bytes <= 6000 for size in by_storage.values())
    assert [t.size.bytes for t in trials if t.point["family"] == "jpeg"] == [6000, 6000]


def test_a_grid_is_every_combination_and_says_what_does_not_fit(tmp_path: Path) -> None:
    space = {"rank": [1, 4, 99], "method.optimiser.lr": {"low": 0.01, "high": 0.1, "grid": 2}}
    planned = plan(base(tmp_path), config(space=space, searcher="grid", trials=99), SPEC)
    assert len(planned.trials) == 4 and len(planned.refused) == 2
    assert "codec.rank=99" in planned.refused[0][1]
    space["method.optimiser.lr"] = {"low": 0.01, "high": 0.1}
    with pytest.raises(Refused, match="at least 2 values"):
        plan(base(tmp_path), config(space=space, searcher="grid"), SPEC)


def test_families_have_dials_of_their_own_and_a_budget_may_be_one(tmp_path: Path) -> None:
    families = {
        "lodc": {"fixed": {"method.codec": {"name": "lodc"}}, "space": {"rank": [1, 2]}},
        "lss": {"fixed": {"method.codec": {"name": "lss"}}, "space": {"sharing": [4, 8]}},
    }
    asked = config(space={"ipc": [1, 2]}, families=families, trials=8, searcher="grid")
    planned = plan(base(tmp_path), asked, SPEC).trials
    assert {t.run.method.part_names[0] for t in planned} == {"lodc", "lss"}
    assert {t.budget for t in planned} == {"1 ipc", "2 ipc"}
    assert all("method.codec.sharing" in t.point for t in planned if t.point["family"] == "lss")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"space": {}}, "at least one dial"),
        ({"space": {"data.limit": [1]}}, "method. or budget."),
        ({"space": {"rank": {"low": 3, "high": 1}}}, "below high"),
        ({"space": {"rank": {"low": 0, "high": 1, "log": True}}}, "above 0 on a log scale"),
        ({"space": {"rank": {"low": 1, "hihg": 3}}}, "did you mean"),
        ({"grace": 9}, "search.steps"),
        ({"reduction": 1}, "above 1"),
        ({"searcher": "bohb"}, "random | grid | tpe"),
        ({"space": {"rank": [50]}}, "rank=50"),
        ({"space": {"method.codec.rnak": [1]}}, "did you mean method.codec.rank"),
    ],
)
def test_bad_searches_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan(base(tmp_path), config(**wrong), SPEC)
    assert message in str(refusal.value)


def test_a_dial_reaches_both_ends() -> None:
    whole = Dial(low=1, high=64, log=True, whole=True)
    assert (whole.at(0), whole.at(0.5), whole.at(1)) == (1, 8, 64)
    assert Dial(choices=("a", "b")).at(1.0) == "b"


def test_one_buffer_serves_the_longest_window(tmp_path: Path) -> None:
    method = {**PLAIN["method"], "objective": {"name": "mtt", "last": 2, "expert_epochs": 1}}
    asked = config(
        space={"method.objective.last": [1, 3], "method.objective.expert_epochs": {"low": 1, "high": 2, "whole": True}}
    )
    run = base(tmp_path, method=method, expert={**PLAIN["expert"], "epochs": 9})
    longest = experts_for(run, asked)
    assert longest is not None and longest.method.objective.last_epoch == 4
    assert {t.run.experts_at for t in plan(run, asked, SPEC).trials} == {run.experts_at}
    assert experts_for(base(tmp_path), config()) is None


# ---- who goes on ---------------------------------------------------------------------------------------------------


def test_percentiles_are_linear() -> None:
    assert percentile([3.0, 1.0], 0.5) == 2.0
    assert percentile([5.0], 0.9) == 5.0


def test_a_rung_is_climbed_once_and_replays() -> None:
    rungs = Rungs(25, 2.0, 100)
    assert sorted(rungs.reached) == [25, 50]
    assert rungs.survives(0, 25, 0.5) and not rungs.survives(1, 25, 0.4)
    assert rungs.survives(0, 25, 0.1), "what was decided stays decided"
    again = Rungs(25, 2.0, 100)
    again.replay(0, [(25, 0.5)])
    again.replay(1, [(25, 0.4)])
    assert again.reached == rungs.reached


@pytest.mark.ray
def test_our_halving_is_rays() -> None:
    """The same decisions as Ray's ASHA on random curves, in a random order of arrival."""
    from types import SimpleNamespace

    from ray.tune.schedulers.async_hyperband import _Bracket

    rng = random.Random(0)
    for reduction in (2, 3):
        ours, rays = Rungs(1, reduction, 27), _Bracket(1, 27, reduction, 0)
        alive, step = set(range(30)), dict.fromkeys(range(30), 0)
        while alive:
            trial = rng.choice(sorted(alive))
            step[trial] += 1
            value = rng.random()
            if step[trial] == 27:
                alive.remove(trial)
                continue
            stopped = rays.on_result(SimpleNamespace(trial_id=str(trial)), step[trial], value) == "STOP"
            assert ours.survives(trial, step[trial], value) is not stopped
            if stopped:
                alive.remove(trial)


# ---- what comes out ------------------------------------------------------------------------------------------------


def record(number: int, accuracy: float, size: int = 100, end: str = "finished", **point: Any) -> TrialRow:
    known = Size({"rank": 1}, 10, size, size, 1.0)
    return TrialRow(number, point, known, "1 ipc", end, "", ((2, accuracy),), accuracy, 0.01, 2, 1.0)


def test_the_front_is_what_nobody_beats() -> None:
    records = [
        record(0, 0.5, 100),
        record(1, 0.4, 100),
        record(2, 0.7, 300),
        record(3, 0.6, 400),
        record(4, 0.9, 50, "stopped"),
    ]
    assert [one.number for one in front(records)] == [0, 2]
    assert {b: one.number for b, one in winners(records).items()} == {"1 ipc": 2}


def test_importance_finds_the_dial_that_matters() -> None:
    rng = random.Random(1)
    records = []
    for i in range(40):
        a, b = rng.choice([1, 2, 4]), rng.random()
        records.append(record(i, 0.1 * a + 0.02 * rng.random(), a=a, b=b))
    shares = {row.dial: row.share for row in importance(records)}
    assert shares["a"] > 0.9 and shares["b"] < 0.3
    assert grouped([3.0, 1.0, 2.0, 5.0, 4.0, 6.0, 7.0, 8.0]) == [1, 0, 0, 2, 1, 2, 3, 3]


def test_yaml_is_read_back() -> None:
    from omegaconf import OmegaConf

    plain = to_dict(base(Path("x")).method)
    plain["terms"] = [{"name": "mim4dd", "weight": 1e-05, "more": {"a": [1, 2]}}]
    assert OmegaConf.to_container(OmegaConf.create(yaml_text(plain))) == plain


# ---- trials in this process ----------------------------------------------------------------------------------------


def test_an_inline_search_stops_some_goes_on_and_reports(tmp_path: Path) -> None:
    run, asked = base(tmp_path), config()
    trials = {t.number: t for t in plan(run, asked, SPEC).trials}
    table = TrialTable(run, asked, SPEC)
    walk = search_inline(table, trials)
    first = next(walk)
    walk.close()
    assert first.end == "finished" and first.std is not None and first.n == 2
    marker = (tmp_path / "search/results/00000.json").stat().st_mtime_ns

    again = TrialTable(run, asked, SPEC)
    rest = list(search_inline(again, trials))
    assert [one.number for one in rest] == [1, 2, 3]
    assert (tmp_path / "search/results/00000.json").stat().st_mtime_ns == marker
    assert {one.end for one in rest} <= {"finished", "stopped"}
    for one in again.records():
        assert one.size is not None and one.size.fill <= 1
    outcome = conclude(again)
    assert outcome["trials"] == 4 and outcome["front"]
    assert "4 trials" in text(outcome) and "rank" in text(outcome)
    assert html(outcome, again.records()).count("<svg") >= 5
    hostile = [
        replace(row, end="<script>", reason="<script>", point={**row.point, "<script>": "$<script>"}) for row in rest
    ]
    page = html({**outcome, "searcher": "<script>"}, hostile)
    assert "<script>" not in page and page.count("&lt;script&gt;") > 3
    rows = Store(tmp_path).read("search/trials.jsonl").decode().splitlines()
    assert len(rows) == 4 and json.loads(rows[0])["method.codec.rank"] in (1, 2, 3, 4)
    from omegaconf import OmegaConf

    winner = OmegaConf.to_container(OmegaConf.create((tmp_path / "search/method/winner.yaml").read_text()))
    again_run = small_run(**{**PLAIN, "method": winner})
    assert again_run.method.steps == 30
    with pytest.raises(Refused, match=r"search\.grace"):
        TrialTable(run, config(grace=4), SPEC)
    with pytest.raises(Refused, match=r"search\.space"):
        TrialTable(run, config(space={"rank": [1, 2, 3, 4]}), SPEC)


def test_an_interrupted_trial_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Cut after the first milestone, a trial ends with the curve of one that was never cut."""
    from rayd.studies.search.trials import advance

    whole, cut = (plan(base(tmp_path / name), config(), SPEC).trials[0].run for name in ("whole", "cut"))
    for _ in advance(whole, config()):
        pass
    walk = advance(cut, config())
    assert next(walk)[0] == 2
    walk.close()
    assert [step for step, _ in advance(cut, config())] == [2, 4, 6, 8]
    assert curve_of(cut, config()) == curve_of(whole, config())


# ---- trials under Ray Tune -----------------------------------------------------------------------------------------


@pytest.mark.ray
def test_trials_do_not_depend_on_how_many_run_at_once(tmp_path: Path, ray_local: None) -> None:
    from rayd.fleet.search import search

    asked = config(trials=3, steps=4, scheduler="none")
    results = []
    for name, at_once in (("one", 1), ("two", 2)):
        run = base(tmp_path / name, scale={"name": "laptop"})
        table = TrialTable(run, replace(asked, concurrent=at_once), SPEC)
        search(table, {t.number: t for t in plan(run, asked, SPEC).trials})
        results.append([(r.number, r.end, r.curve, r.accuracy, r.std) for r in table.records()])
    assert len(results[0]) == 3
    assert results[0] == results[1]


@pytest.mark.ray
def test_more_than_the_cluster_has_is_refused_soon(tmp_path: Path, ray_local: None) -> None:
    from rayd.fleet.search import search

    run = base(tmp_path, scale={"name": "laptop", "cpus": 99})
    began = time.monotonic()
    with pytest.raises(Refused, match=r"one trial needs CPU 99.*have CPU 4"):
        search(TrialTable(run, config(), SPEC), {t.number: t for t in plan(run, config(), SPEC).trials})
    assert time.monotonic() - began < 10


@pytest.mark.ray
def test_tpe_continues_from_the_table(tmp_path: Path, ray_local: None) -> None:
    pytest.importorskip("optuna")
    from rayd.fleet.search import OptunaSearcher, search

    asked = config(trials=2, steps=2, grace=2, searcher="tpe")
    run = base(tmp_path, scale={"name": "laptop"})
    search(TrialTable(run, asked, SPEC), {})
    assert [one.number for one in TrialTable(run, asked, SPEC).records()] == [0, 1]
    longer = TrialTable(run, replace(asked, trials=3), SPEC)
    replayed = OptunaSearcher(longer, 3)
    assert len(replayed.optuna._ot_study.trials) == 2
    search(longer, {})
    assert [one.number for one in longer.records()] == [0, 1, 2]
