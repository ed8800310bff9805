"""Statistics, and numbers for people."""

from __future__ import annotations

import math
import statistics

import pytest

from rayd.numbers import difference, duration, mean, percent, quantile, size_text, summary


def test_summary_is_the_textbooks() -> None:
    values = [0.1, 0.4, 0.2, 0.7]
    found = summary(values)
    assert found["mean"] == mean(values) == pytest.approx(0.35) and found["n"] == 4
    assert found["std"] == pytest.approx(statistics.stdev(values))
    assert found["ci95"] == pytest.approx(3.182 * statistics.stdev(values) / 2, rel=1e-3)
    assert summary([0.3])["std"] == summary([0.3])["ci95"] == 0
    printed = {
        (1, 0.05): 12.706,
        (0, 0.05): 12.706,
        (2, 0.01): 9.925,
        (8, 0.05): 2.306,
        (29, 0.05): 2.045,
        (120, 0.05): 1.980,
    }
    for (freedom, error), t in printed.items():
        assert quantile(freedom, error) == pytest.approx(t, abs=5e-4)


def test_difference_of_two_means() -> None:
    a, b = summary([1.0, 2.0, 3.0]), summary([1.0, 1.0, 1.0])
    gap, half = difference(a, b)
    assert gap == 1 and half == pytest.approx(quantile(2) / math.sqrt(3))
    assert difference(a, b, looks=5)[1] == pytest.approx(quantile(2, 0.01) / math.sqrt(3))
    assert difference(b, b) == (0, 0) and difference(a, summary([1.0]))[1] == math.inf


def test_numbers_for_people() -> None:
    assert [size_text(n) for n in (0, 999, 1500, 2.5e6, 3e9, 4e12, 5e16)] == [
        "0 B", "999 B", "1.50 kB", "2.50 MB", "3.00 GB", "4.00 TB", "50000.00 TB",
    ]  # fmt: skip
    assert [duration(s) for s in (-1, 12.4, 185, 7810)] == ["0 s", "12 s", "3 min 05 s", "2 h 10 min"]
    assert [percent(0.476), percent(0.476, 0.003), percent(0.476, 0.003, 5)] == [
        "47.6 %", "47.6 ± 0.3 %", "47.6 ± 0.3 % (n=5)",
    ]  # fmt: skip
