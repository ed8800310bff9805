"""A run that learns nothing is an error: it ends non-zero, says why, and leaves no artifact."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import distill
from jobs.compose import command
from rayd.run.experts import ExpertPlan, build
from tests.support.runs import digits_run

WORDS = (
    "data=digits", "net.depth=2", "net.width=8", "expert=quick", "expert.experts=2", "expert.epochs=4", "method=mtt",
    "method.steps=200", "method.compiled=false", "method.checkpoint=2", "method.objective.last=2",
    "method.objective.inner_steps=2", "method.objective.batch=10", "method.guard.patience=5",
)  # fmt: skip
NOTHING = {
    "method.objective.skip_above=1e-9": "every item was above the threshold",
    "method.guard.stall=10.0": "the gradient of the codec is",
}
"""The second calls any gradient gone that is not ten times the first."""


@pytest.fixture(scope="module")
def buffer(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = digits_run(tmp_path_factory.mktemp("experts"), experts=2)
    for _ in build(ExpertPlan.open(run)):
        pass
    return run.experts_at


def ended(buffer: str, out: Path, *words: str) -> int:
    """The exit code of the job."""
    return command("distill", None, distill.act, "", [*WORDS, f"buffer={buffer}", f"out={out}", *words])


@pytest.mark.parametrize("word", NOTHING)
def test_inline(word: str, buffer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(buffer, tmp_path, word) == 1
    text = capsys.readouterr().err
    assert "step 5: nothing was learned in 5 steps in a row" in text and NOTHING[word] in text
    assert "method.objective.step_size" in text and "skip_above" in text and "Traceback" not in text
    assert not (tmp_path / "artifact").exists()


def test_the_count_goes_on_where_a_resumed_run_stands(buffer: str, tmp_path: Path) -> None:
    """Ended once, submitted again: the same diagnosis at the same step, from the checkpoint before it."""
    for _ in range(2):
        assert ended(buffer, tmp_path, "method.objective.skip_above=1e-9") == 1
        markers = sorted((tmp_path / "checkpoints").glob("step-*.json"))
        assert len(markers) == 2 and markers[-1].stem == "step-000004"


@pytest.mark.slow
@pytest.mark.ray
def test_under_train(buffer: str, tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("method.objective.skip_above=1e-9", "scale=laptop", "scale.cpus=0.5")
    assert ended(buffer, tmp_path, *words) == 1
    assert "nothing was learned in 5 steps in a row" in capsys.readouterr().err
    assert not (tmp_path / "artifact").exists()
