"""Processes and the GPUs that Ray gives them; what a scale may ask for; whose seeds go together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayd.errors import Refused
from rayd.evaluate.row import RowName
from rayd.run.rows import RowTask
from tests.support.runs import small_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.ray
def test_every_task_computes_on_the_gpu_that_it_was_given() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = str(ROOT / "tests" / "support" / "bound.py")
    done = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    on_gpus = [one for one in seen if one["kind"] != "cpu"]
    assert len([one for one in seen if one["kind"] == "gpu"]) == 24
    wrong = [one for one in on_gpus if one["first"] != one["sees"] or one["sees"] != ",".join(one["given"])]
    assert not wrong
    assert {one["sees"] for one in on_gpus} == {"0", "1"}, "both were used"
    assert {one["sees"] for one in seen if one["kind"] == "cpu"} == {""}, "who asked for none sees none"


@pytest.mark.parametrize(
    "scale",
    [{"gpus": 0.5, "workers": 2}, {"gpus": 2}, {"gpus": 2, "workers": 2}, {"gpus": 0.4}],
    ids=["two ranks on a GPU", "two GPUs for a worker", "four GPUs for two", "a share that tiles no GPU"],
)
def test_a_scale_that_cannot_be_is_refused_before_it_is_placed(scale: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=r"scale\.gpus"):
        small_run(scale={"name": "laptop", **scale})


def test_on_a_gpu_the_seeds_of_a_row_are_one_task() -> None:
    row = RowTask(RowName("distilled"), 0, (1, 2, 3))
    assert [part.seeds for part in row.parts(1.0)] == [(1, 2, 3)]
    assert [part.seeds for part in row.parts(0.0)] == [(1,), (2,), (3,)]
