"""What is decided about a step: a pure function of the tally, the gradient's norms and what is remembered."""

from __future__ import annotations

import math

import pytest
import torch

from rayd.distill.guard import (
    PLATEAU_STEPS,
    WARM,
    Act,
    GuardConfig,
    Record,
    Tally,
    Verdict,
    bad,
    bytes_reduced,
    verdict,
)

GUARD = GuardConfig(patience=3, bad=2, rollbacks=1)
GOOD, SKIPPED = Tally(1.0, 2, 0), Tally(0.0, 0, 2)


def after(steps: list[tuple[Tally, float]], record: Record | None = None, total: int = 1000) -> Verdict:
    """The last verdict on steps of (tally, norm of the codec's gradient)."""
    decision = Verdict(Act.STEP, "", record or Record())
    for tally, norm in steps:
        last = decision.record.number + 1 == total
        decision = verdict(GUARD, decision.record, tally, norm, norm, last)
    return decision


@pytest.mark.parametrize(
    ("steps", "act", "why"),
    [
        ([(GOOD, 1.0)], Act.STEP, ""),
        ([(SKIPPED, 0.0)], Act.SKIP, "threshold"),
        ([(SKIPPED, 0.0)] * 2, Act.SKIP, "threshold"),
        ([(SKIPPED, 0.0)] * 3, Act.END, "nothing was learned in 3 steps in a row: every item"),
        ([(SKIPPED, 0.0), (SKIPPED, 0.0), (GOOD, 1.0), (SKIPPED, 0.0)], Act.SKIP, "threshold"),
        ([(GOOD, 1.0), (GOOD, 1e-7), (GOOD, 1e-7)], Act.STEP, ""),
        (
            [(GOOD, 1.0), (GOOD, 1e-7), (SKIPPED, 0.0), (GOOD, 1e-8)],
            Act.END,
            "gradient of the codec is 1e-08, and was 1",
        ),
        ([(GOOD, 1.0), *[(GOOD, 2e-6)] * 9], Act.STEP, ""),
        ([(GOOD, 0.0)] * 3, Act.END, "gradient of the codec is 0"),
        ([(GOOD, math.nan)], Act.SKIP, "norm nan"),
        ([(GOOD, math.nan), (GOOD, math.inf)], Act.ROLL_BACK, "norm inf"),
        ([(GOOD, math.nan), (GOOD, 1.0), (GOOD, math.nan)], Act.SKIP, "norm nan"),
        ([(GOOD, math.nan)] * 4, Act.END, "after 1 rollbacks and 4 skipped steps"),
        ([(Tally(math.inf, 1, 0), 1.0)], Act.SKIP, "loss inf"),
    ],
)
def test_verdicts(steps: list[tuple[Tally, float]], act: Act, why: str) -> None:
    decision = after(steps)
    assert decision.act is act and decision.record.number == len(steps)
    assert why in decision.why if why else not decision.why


def test_a_run_that_never_learned_ends_at_its_last_step() -> None:
    assert after([(SKIPPED, 0.0)] * 2, total=2).act is Act.END
    assert after([(GOOD, 1.0), (SKIPPED, 0.0)], total=2).act is Act.SKIP


@pytest.mark.parametrize(("idle", "total", "act"), [(9, 30, Act.STEP), (10, 30, Act.END), (10, 60, Act.STEP)])
def test_a_run_that_learned_nothing_in_its_last_quarter_ends(idle: int, total: int, act: Act) -> None:
    record = Record(number=total - idle, first=1.0, typical=1.0)
    for _ in range(idle):
        decision = verdict(GUARD, record, GOOD, 1.0, 1.0, record.number + 1 == total, "the floor")
        assert decision.act is Act.STEP or decision.record.number == total, "it may get free"
        record = decision.record
    assert decision.act is act and ("the floor" in decision.why) == (act is Act.END)


def test_an_exploded_step_size_rolls_back_at_once() -> None:
    first = bad(GUARD, Record(number=5), "step size 11", at_once=True)
    assert first.act is Act.ROLL_BACK and first.record.rolled == 1
    assert bad(GUARD, first.record, "step size 11", at_once=True).act is Act.END


def test_a_gradient_out_of_proportion_is_skipped_until_it_is_the_rule() -> None:
    usual = [(GOOD, 1.0)] * WARM
    assert after([*usual[1:], (GOOD, 16.0)]).act is Act.STEP, "nothing is typical yet"
    assert after([*usual, (GOOD, 14.0)]).act is Act.STEP
    spike = after([*usual, (GOOD, 16.0)])
    assert spike.act is Act.SKIP and "norm is 16, where 1 is typical" in spike.why
    assert spike.record.typical == pytest.approx(15**0.1) and spike.record.skipped == 1
    assert after([(GOOD, 1.0)], spike.record).act is Act.STEP
    assert [after([(GOOD, 100.0)] * n, spike.record).act for n in (1, 9)] == [Act.SKIP, Act.STEP]
    falling = after([(GOOD, 0.7**n) for n in range(38)])
    assert falling.act is Act.STEP and falling.record.skipped == 0
    assert after([(GOOD, 0.0)], Record(number=20)).record.typical == 0.0


def test_the_rate_is_halved_on_a_plateau() -> None:
    flat = after([(GOOD, 1.0)] * (PLATEAU_STEPS + 1))
    assert flat.record.factor == 1.0 and after([(GOOD, 1.0)], flat.record).record.factor == 0.5
    assert after([(GOOD, 1.0)] * PLATEAU_STEPS, after([(GOOD, 1.0)], flat.record).record).record.factor == 0.5
    falling = Record()
    for i in range(2 * PLATEAU_STEPS):
        falling = verdict(GUARD, falling, Tally(1.0 - 1e-3 * i, 1, 0), 1.0, 1.0, False).record
    assert falling.factor == 1.0 and falling.lowest < 1e-2


def test_a_record_is_kept_whole_and_that_of_an_earlier_version_is_read() -> None:
    record = after([(GOOD, 0.1), (SKIPPED, 0.0)]).record
    assert Record.of(record.tensor()) == record
    assert Record.of(torch.tensor([7, 1, 0, 2])) == Record(number=7, bad=1, skipped=2)


def test_bytes_of_a_step() -> None:
    assert bytes_reduced(10) == 104


def test_impossible_guards_are_refused() -> None:
    for wrong in (
        {"spike": 1.0},
        {"patience": 0},
        {"bad": 0},
        {"rollbacks": -1},
        {"max_step_size": 0.0},
        {"stall": -1.0},
    ):
        with pytest.raises(ValueError, match="guard"):
            GuardConfig(**wrong)  # type: ignore[arg-type]
