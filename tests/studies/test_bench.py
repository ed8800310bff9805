"""What a ratio is: ways in turn, pairs of a turn, a mark where they scatter; and that the reference computes the same."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

from rayd.data.images import Spec
from rayd.distill.unroll import cross_entropy
from rayd.nets.convnet import NetConfig
from rayd.seeds import generator
from rayd.studies import bench
from rayd.studies.bench import HEAD, BenchRow, Timing, compared, interleaved, isolated, others, pairs
from rayd.studies.bench.codecs import CODECS, SIZES, both, decode, fitted, through
from rayd.studies.bench.field import convnet, started
from rayd.studies.bench.unroll import field_loss


def test_ways_take_turns_and_the_first_turn_is_not_counted() -> None:
    calls: list[str] = []

    def way(name: str, work: float | None) -> float | None:
        calls.append(name)
        time.sleep(0.02)
        return work

    by_way = interleaved({"a": lambda: way("a", None), "b": lambda: way("b", 4)}, turns=3)
    assert calls == ["a", "b"] * 4
    assert len(by_way["a"].wall) == len(by_way["b"].cpu) == 3
    assert by_way["a"].seconds >= 0.02 and 0.005 <= by_way["b"].seconds < by_way["a"].seconds
    assert max(by_way["a"].cpu) < 0.02, "sleeping takes no CPU seconds"


def test_a_ratio_is_of_pairs_and_says_when_it_is_noisy() -> None:
    """A machine that becomes twice as slow half-way changes no pair."""
    slowing = [1.0, 1.0, 2.0, 2.0, 2.0]
    assert pairs(slowing, [value / 2 for value in slowing]) == (2.0, False)
    middle, noisy = pairs([1.0] * 5, [0.3, 0.5, 0.5, 0.7, 1.0])
    assert middle == 2.0 and noisy
    steady, rough = Timing([2.0] * 5, [2.0] * 5, 9.0), Timing([1.0, 1.4, 0.8, 1.0, 1.2], [1.0] * 5, 4.0)
    row = compared("x", "case", rough, steady, floor=Timing([0.5] * 5, [0.5] * 5, 0.5))
    assert (row.ratio, row.cpu_ratio, row.floor, row.noisy) == (2.0, 2.0, 0.5, True)
    assert row.line().endswith("noisy") and json.loads(row.json())["noisy"]
    assert len(HEAD) >= row.line().index("2.00")
    assert rough.compilation == 3.0


@pytest.mark.parametrize("depth", [2, 3])
def test_the_torch_modules_compute_what_our_network_computes(depth: int) -> None:
    spec = Spec((3, 32, 32), 10)
    net = NetConfig(width=8, depth=depth).build(spec)
    theta = net.init(generator(0, "init"))
    images = torch.randn(5, *spec.shape, generator=generator(1, "images"))
    with torch.no_grad():
        assert torch.allclose(started(convnet(8, depth), theta)(images), net(theta, images), atol=1e-5)
    if depth == 3:
        targets = F.one_hot(torch.arange(5), 10).float()
        ours, theirs = (loss(theta, images, targets) for loss in (cross_entropy(net), field_loss(8)))
        assert float(ours) == pytest.approx(float(theirs), abs=1e-5)


def test_a_child_process_returns_timings_and_a_peak_of_its_own() -> None:
    ballast = torch.ones(2**28)
    assert ballast[0] == 1, "this process is larger than the child becomes"
    result = isolated("objectives", "ways", names=["field"], part="dm", width=16, real=128, frequencies=4)
    assert result["peak"] > 10 * 2**20, "activations, above what the imports took"
    timing = Timing(**result["field"])
    assert len(timing.wall) == len(timing.cpu) == 5 and 0 < timing.seconds < timing.first + 10


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_can_be_timed(name: str) -> None:
    for spec, ipc, *_ in SIZES["default"]:
        codec = fitted(CODECS[name], spec, ipc)
        assert len(codec) >= spec.classes
        index = torch.arange(spec.classes)
        assert decode(codec, index) == both(codec, index) == len(index)
        through(codec, 1)


def test_a_busy_machine_is_noticed() -> None:
    words = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(words) as other:
        assert others(0.5) > 0.3
        other.kill()


@pytest.mark.parametrize("name", ["codecs", "scaling"])
def test_beside_other_work_every_row_is_marked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what needs its cores for itself is not run."""
    row = BenchRow(bench=name, case="width=32", value=1.0, unit="s", ratio=2.0)
    monkeypatch.setattr(f"rayd.studies.bench.{name}.rows", lambda size: iter([row]))
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 2)
    for taken, marked in ((0.1, False), (1.0, True)):
        monkeypatch.setattr(bench, "others", lambda taken=taken: taken)
        (one,) = bench.rows(name)
        assert one.noisy == marked
        assert one.case == (
            "not run: other processes have 1.0 of 2 cores" if marked and name == "scaling" else row.case
        )
