"""What a plan promises: bytes equal to what is then written, and costs that come from the run's own steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rayd.config import Run
from rayd.data.load import load as load_data
from rayd.experts.config import plan_units
from rayd.run.cost import against, keep
from rayd.run.distill import distill
from rayd.run.experts import ExpertPlan, build
from rayd.schema import parse
from rayd.store import Store
from rayd.studies.plan import plan
from rayd.studies.plan.sizes import ledger_size, npy_bytes, padded, shard_bytes
from tests.support.runs import digits_run

CODECS: tuple[dict[str, Any], ...] = (
    {"name": "pixel"},
    {"name": "pixel", "labels": "soft"},
    {"name": "pixel", "storage": "int8"},
    {"name": "lodc", "rank": 2},
    {"name": "nsd", "storage": "fp16"},
)


def small(out: Path, codec: dict[str, Any] | None = None, **expert: Any) -> Run:
    """A run of seconds: nothing compiled."""
    method = {"codec": codec or {}, "objective": {"inner_steps": 2}, "steps": 2, "compiled": False}
    rest = {"data": {"limit": 128}, "budget": {"ipc": 2}, "recipe": {"steps": 4, "seeds": 1, "batch": 256}}
    return digits_run(out, changes={"method": method, **rest}, **expert)


EXPERTS: tuple[dict[str, Any], ...] = (
    {"experts": 2},
    {"experts": 5, "per_shard": 2},
    {"storage": "fp16", "keep": "all"},
    {"check": 0, "epochs": 20, "keep": "all", "experts": 2},
)


@pytest.mark.parametrize("expert", EXPERTS, ids=str)
def test_the_buffer_is_as_large_as_planned(tmp_path: Path, expert: dict[str, Any]) -> None:
    run = small(tmp_path, **expert)
    planned = plan(run, probe_seconds=0)
    assert planned.experts.slack == 0
    opened = ExpertPlan.open(run)
    assert planned.experts.micro == opened.run.expert.micro > 0, "what the fleet will pass at once"
    for _ in build(ExpertPlan.open(run)):
        pass
    tars = list((tmp_path / "experts").glob("*.tar"))
    assert len(tars) == planned.experts.shards
    assert sum(path.stat().st_size for path in tars) == planned.experts.bytes


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: "-".join(map(str, codec.values())))
def test_the_artifact_is_as_large_as_planned(tmp_path: Path, codec: dict[str, Any]) -> None:
    run = small(tmp_path, codec, experts=1)
    planned = plan(run, probe_seconds=0).json()
    for _ in build(ExpertPlan.open(run)):
        pass
    for _ in distill(run):
        pass
    rows = against(planned, Store(run.out), Store(run.experts_at))
    assert [name for name, expected, actual in rows if expected != actual] == []
    assert {"buffer bytes", "artifact floats", "artifact bytes"} <= {name for name, _, _ in rows}
    assert (tmp_path / "artifact" / "codec.safetensors").stat().st_size == planned["ledger"]["bytes"]
    card = json.loads((tmp_path / "artifact" / "card.json").read_text())
    assert card["images"] == planned["ledger"]["images"]
    Store(run.out).write_json("plan.json", planned)
    keep(run, Store(run.out).sub("artifact"))
    kept = json.loads((tmp_path / "artifact" / "timing.json").read_text())["plan"]
    assert {
        "what": "artifact bytes",
        "planned": planned["ledger"]["bytes"],
        "actual": planned["ledger"]["bytes"],
    } in kept


def test_what_is_uncertain_is_said(tmp_path: Path) -> None:
    """Many epochs of figures in many experts: the shard's size is bounded, and the plan says by how much."""
    run = small(tmp_path, experts=40, per_shard=40, epochs=60, keep="all")
    planned = plan(run, probe_seconds=0)
    assert 0 < planned.experts.slack < 0.25 * planned.experts.bytes
    assert any("at most" in line for line in planned.lines())


def test_sizes_of_the_papers() -> None:
    """DATM's buffer on CIFAR-100: 100 ConvNet-3 of 100 epochs, 5 a shard, of which a window of 72 can be matched."""
    from rayd.experts.config import ExpertConfig

    config = ExpertConfig(epochs=100)
    units = plan_units(config, 0, 71)
    assert len(units) == 20 and len(units[0].epochs) == 72
    least, most = shard_bytes(config, units[0], 504_420, 1000)
    assert least >= 5 * 72 * 504_420 * 4 and (most - least) / least < 1e-4
    assert npy_bytes((72, 504_420), "fp32") == 128 + 72 * 504_420 * 4
    assert padded(513, 512) == 1024


def test_a_budget_too_small_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    from rayd.errors import Refused

    run = replace(small(tmp_path), budget=parse(type(small(tmp_path).budget), {"floats": 10}, "budget"))
    with pytest.raises(Refused, match="budget"):
        plan(run, probe_seconds=0)
    assert not list(tmp_path.iterdir())


def test_infeasible_is_said(tmp_path: Path) -> None:
    run = small(tmp_path)
    run = replace(run, scale=parse(type(run.scale), {"name": "laptop", "workers": 3}, "scale"))
    method = {"codec": {"name": "pixel"}, "objective": {"name": "distribution"}, "steps": 1}
    by_class = replace(run, method=parse(type(run.method), method, "method"))
    assert any("items" in warning for warning in plan(by_class, probe_seconds=0).warnings)
    assert not plan(run, probe_seconds=0).warnings, "the workers of a segment share its images"


def test_no_experts_where_none_are_needed(tmp_path: Path) -> None:
    run = small(tmp_path)
    method = {"codec": {"name": "pixel"}, "objective": {"name": "distribution"}, "steps": 1}
    planned = plan(replace(run, method=parse(type(run.method), method, "method")), probe_seconds=0)
    assert planned.experts.experts == 0 and planned.traffic.read == 0
    assert "step" not in planned.ledger.by_role


def test_the_probe_runs_the_stages(tmp_path: Path) -> None:
    """In this process, which is what a child does; nothing is left behind."""
    from rayd.studies.plan.probe import STAGES, request, run_stage

    run, threads = small(tmp_path), torch.get_num_threads()
    calls: list[str] = []

    def probe(run: Run, seconds: float) -> dict[str, dict[str, float]]:
        measured = {}
        for stage in STAGES:
            measured[stage] = run_stage(request(run, stage, seconds))
            calls.append(stage)
        return measured

    planned = plan(run, 0.2, probe)
    torch.set_num_threads(threads)
    assert calls == list(STAGES)
    assert all(seconds > 0 for seconds in planned.seconds.values()) and "controls" in planned.seconds
    assert planned.traffic.read == 2 * planned.experts.row
    assert planned.traffic.reduced == 8 * (3 + planned.ledger.moved)
    assert any(line.startswith("time") for line in planned.lines())
    assert not list(tmp_path.iterdir())


def test_scoring_follows_the_recipe(tmp_path: Path) -> None:
    """Two views and ten controls of one seed; images and operations counted by hand for a network of one block."""
    run = small(tmp_path)
    run = replace(run, net=replace(run.net, depth=1, width=4))
    planned = plan(run, probe_seconds=0)
    scoring, train = planned.scoring, planned.data.train
    assert (scoring.images, scoring.steps, scoring.batch, scoring.epochs) == (20, 4, 20, 4)
    assert (scoring.networks, scoring.controls) == (2, 10)
    raw = planned.ledger.bytes // 65
    assert scoring.control_images == 4 * (5 * 20 + 4 * raw + 2 * train)
    forward = 2 * (4 * 9 * 1 * 64 + 4 * 16 * 10)
    assert scoring.operations == 3 * forward * (2 * 4 * 20 + scoring.control_images)
    assert any("4 epochs = 4 steps of 20" in line for line in planned.lines())
    epochs = replace(run.recipe, steps=None, epochs=3, batch=8)
    scoring = plan(replace(run, recipe=epochs), probe_seconds=0).scoring
    assert (scoring.epochs, scoring.steps) == (3, 9), "an epoch of 20 images is 3 steps of 8"
    capped = plan(replace(run, recipe=replace(epochs, full_epochs=1)), probe_seconds=0).scoring
    steps = -(-train // 8)
    assert scoring.control_images - capped.control_images == 2 * 8 * steps, "one pass instead of three"
    assert capped.full_epochs == 8 * steps / train and "`full` 1 epochs" in capped.text()


def test_the_ledger_follows_the_budget(tmp_path: Path) -> None:
    run = small(tmp_path, {"name": "lodc"})
    spec = load_data(run.data).train.spec
    from rayd.distill.budget import Budget

    sizes = [ledger_size(run, spec, Budget(ipc=ipc)).floats for ipc in (1, 2, 5)]
    assert sizes == sorted(sizes) and sizes[0] <= spec.classes * spec.floats + 1
