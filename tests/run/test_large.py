"""More images than memory: every stage of a run under 2 GB of anonymous memory, whatever the number of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.large import STAGES, Cost, stage_of


def all_stages(folder: Path, classes: int, count: int) -> dict[str, Cost]:
    return {stage: stage_of(folder, stage, classes, count) for stage in STAGES}


def test_every_stage_runs_from_prepared_shards(tmp_path: Path) -> None:
    costs = all_stages(tmp_path, 5, 600)
    assert all(cost.peak > 2**26 for cost in costs.values()), "the peaks were seen"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_does_not_depend_on_the_number_of_images(tmp_path: Path) -> None:
    """1,000 classes of 64 px, 50,000 and 400,000 images (4.9 GB); each stage is ready within 15 s."""
    few, many = (all_stages(tmp_path / str(count), 1000, count) for count in (50_000, 400_000))
    for stage in STAGES:
        print(
            f"{stage}: {few[stage].peak / 2**30:.2f} and {many[stage].peak / 2**30:.2f} GiB, ready {many[stage].ready:.1f} s"
        )
    for stage in STAGES:
        assert many[stage].ready < 15, f"{stage} took {many[stage].ready:.1f} s to get ready"
        assert many[stage].peak <= 1.1 * few[stage].peak, f"{stage}: {few[stage].peak:,} and {many[stage].peak:,} bytes"
