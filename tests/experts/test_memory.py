"""The micro-batch of stacked experts: planned by arithmetic, kept to by measurement, recorded, halved once."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.errors import OutOfMemory, Refused
from rayd.experts import train as training
from rayd.experts.config import ExpertConfig
from rayd.experts.memory import SPARE, micro_batch, unit_bytes
from rayd.experts.train import ExpertStep
from rayd.nets.convnet import NetConfig
from rayd.run import experts as stage
from rayd.run.experts import ExpertPlan, build
from tests.support.runs import digits_run
from tests.support.worlds import tiny

GB = 2**30
STACKED = {"engine": "stacked", "compiled": False, "precision": "fp32"}


def test_five_experts_of_a_wide_convnet_at_128_px_fit_24_gb_with_a_fifth_to_spare() -> None:
    net = NetConfig(depth=5, width=128).build(Spec((3, 128, 128), 10))
    config, resident = ExpertConfig(per_shard=5), 9000 * 3 * 128 * 128
    images = micro_batch(config, net, resident, SPARE * 24 * GB)
    assert 8 <= images < config.batch
    assert (
        unit_bytes(config, net, 5, images, resident)
        <= SPARE * 24 * GB
        < unit_bytes(config, net, 5, 2 * images, resident)
    )


def test_what_can_never_fit_is_refused() -> None:
    net = NetConfig(depth=3, width=128).build(Spec((3, 64, 64), 10))
    with pytest.raises(Refused, match=r"expert\.per_shard"):
        micro_batch(ExpertConfig(), net, 0, GB / 8)


MEASURED = """
import json, sys, torch
from rayd.data.transform import Transform
from rayd.experts.config import ExpertConfig
from rayd.experts.memory import micro_batch, unit_bytes
from rayd.experts.train import ExpertStep
from rayd.nets.convnet import NetConfig
from tests.support.worlds import tiny

def unit(config, size, width):
    images = tiny(config.batch, size, channels=3)
    net = NetConfig(depth=4, width=width).build(images.spec)
    transform = Transform("normalise", torch.zeros(3), torch.ones(3))
    chosen = micro_batch(config, net, images.pixels_NCHW.numel(), config.memory * 2**30)
    config = ExpertConfig(**{**vars(config), "micro": chosen})
    step = ExpertStep(config, net, transform, images, None, torch.device("cpu"), True)
    theta = 0.01 * torch.randn(config.per_shard, net.size)
    for x, y in step.batches(range(config.per_shard), 1):
        step.step(theta, None, x, y, 0.01)
    return unit_bytes(config, net, config.per_shard, chosen, images.pixels_NCHW.numel()), chosen

def held(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

torch.set_num_threads(1)
common = dict(engine="stacked", compiled=False, precision="fp32", batch=64, memory=2.0)
unit(ExpertConfig(**common, per_shard=2), 16, 4)  # libraries are loaded
open("/proc/self/clear_refs", "w").write("5")
before = held("VmRSS")
planned, chosen = unit(ExpertConfig(**common, per_shard=5), 64, 32)
print(json.dumps({"planned": planned, "chosen": chosen, "measured": held("VmHWM") - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of a process")
def test_a_limit_of_two_gb_is_kept_and_what_was_planned_is_what_it_takes() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["chosen"] < 64, "the whole batch would not fit"
    assert found["measured"] <= 1.15 * 2 * GB
    assert 0.8 < found["measured"] / found["planned"] < 1.15, found


@pytest.mark.parametrize("micro", [1, 5, 16])
def test_micro_batches_add_up_to_the_batch(micro: int) -> None:
    images = tiny(32, channels=3)
    net = NetConfig(depth=2, width=4).build(images.spec)
    transform = Transform.fit(images, "normalise")
    thetas = []
    for size in (16, micro):
        config = ExpertConfig(batch=16, micro=size, **STACKED)  # type: ignore[arg-type]
        step = ExpertStep(config, net, transform, images, None, torch.device("cpu"), True)
        theta_KP = torch.stack([net.init(torch.Generator().manual_seed(k)) for k in range(3)])
        for x, y in step.batches((1, 2, 3), 1):
            step.step(theta_KP, None, x, y, 0.05)
        thetas.append(theta_KP)
    torch.testing.assert_close(thetas[1], thetas[0], rtol=1e-4, atol=1e-6)


def test_the_buffer_records_the_micro_batch_and_what_is_free_later_does_not_change_it(tmp_path: Path) -> None:
    run = digits_run(tmp_path, experts=2, per_shard=2, engine="stacked", memory=1.0)
    first = ExpertPlan.open(run)
    first.writer.claim()
    chosen = first.run.expert.micro
    assert first.writer.fingerprint["plan"]["chunk"] == chosen > 0
    less = ExpertPlan.open(replace(run, expert=replace(run.expert, memory=1e-9 + 0.0001)))
    assert less.run.expert.micro == chosen
    assert run.fingerprint() == replace(run, expert=replace(run.expert, micro=3)).fingerprint()


def short_of_memory(limit: int) -> Any:
    """Training that runs out of memory above so many images at a time."""
    real = training.train

    def train(config: ExpertConfig, *arguments: Any, **options: Any) -> Iterator[Any]:
        if config.micro > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(config, *arguments, **options)

    return train


def test_memory_that_runs_out_is_asked_for_once_more_by_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = digits_run(tmp_path, experts=2, per_shard=1, engine="stacked", micro=32)
    monkeypatch.setattr(stage, "train", short_of_memory(16))
    with caplog.at_level(logging.WARNING):
        progress = list(build(ExpertPlan.open(run)))[-1]
    assert progress.done == 2
    assert "expert.micro=16" in caplog.text
    assert ExpertPlan.open(replace(run, expert=replace(run.expert, micro=0))).run.expert.micro == 16


def test_memory_that_runs_out_twice_names_its_knobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = digits_run(tmp_path, experts=2, per_shard=1, engine="stacked", micro=32)
    monkeypatch.setattr(stage, "train", short_of_memory(4))
    with pytest.raises(OutOfMemory, match=r"expert\.micro=16, expert\.per_shard=1, expert\.batch="):
        list(build(ExpertPlan.open(run)))
