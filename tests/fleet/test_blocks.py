"""A run in blocks, as its driver sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayd.config import Run
from rayd.data.load import load as load_data
from rayd.errors import Refused
from rayd.fleet import distill as fleet
from rayd.fleet import distill_blocks
from rayd.run import assemble
from rayd.run.distill import distill
from rayd.run.experts import ExpertPlan, build
from tests.support.runs import small_run


def run(out: Path, **codec: Any) -> Run:
    return small_run(
        data={"name": "digits"},
        net={"width": 4, "norm": "batch"},
        expert={"experts": 1, "epochs": 1},
        method={"codec": codec, "objective": {"name": "dwa", "blocks": 20, "classes_per_item": 1}},
        budget={"ipc": 20},
        out=str(out),
    )


def test_the_driver_of_many_blocks_loads_the_dataset_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []

    def load(config: Any) -> Any:
        loads.append(config)
        return load_data(config)

    monkeypatch.setattr(distill_blocks, "load_data", load)
    blocks = distill_blocks.block_runs(run(tmp_path))
    assert len(blocks) == 200 and len({block.out for block in blocks}) == 200
    assert len(loads) == 1
    assert {block.experts_at for block in blocks} == {run(tmp_path).experts_at}


@pytest.mark.ray
@pytest.mark.slow
def test_two_hundred_blocks_leave_the_set_of_one_run(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each a task of its own; the driver loads the dataset once, to name them and to join them."""
    plain = {
        "data": {"name": "digits"}, "net": {"width": 4, "norm": "batch"}, "budget": {"ipc": 20},
        "expert": {"experts": 1, "epochs": 1, "compiled": False}, "buffer": str(tmp_path / "experts"),
        "method": {"compiled": False, "steps": 2, "objective": {"name": "dwa", "blocks": 20, "classes_per_item": 1}},
    }  # fmt: skip
    calm = small_run(**plain, out=str(tmp_path / "calm"))
    list(build(ExpertPlan.open(calm)))
    list(distill(calm))
    loads: list[Any] = []

    def load(config: Any) -> Any:
        loads.append(config)
        return load_data(config)

    for module in (fleet, distill_blocks, assemble):
        monkeypatch.setattr(module, "load_data", load)
    scale = {"name": "laptop", "cpus": 1.0, "threads": 1}
    list(fleet.distill(small_run(**plain, out=str(tmp_path / "parted"), scale=scale)))
    assert len(list((tmp_path / "parted" / "blocks").iterdir())) == 200 and len(loads) == 1
    sets = [(tmp_path / name / "artifact" / "codec.safetensors").read_bytes() for name in ("calm", "parted")]
    assert sets[0] == sets[1]


def test_blocks_of_a_codec_that_shares_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="pixel, whose blocks share nothing"):
        distill_blocks.block_runs(run(tmp_path, name="lodc"))
