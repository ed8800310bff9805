"""A run in blocks, as its driver sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayd.config import Run
from rayd.data.load import load as load_data
from rayd.errors import Refused
from rayd.fleet import distill_blocks
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


def test_blocks_of_a_codec_that_shares_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="pixel, whose blocks share nothing"):
        distill_blocks.block_runs(run(tmp_path, name="lodc"))
