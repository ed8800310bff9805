"""What a run is refused by, or left alone by, as the command line meets it: arithmetic, device, a buffer that grew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import distill, experts
from jobs.compose import command
from rayd.errors import Failed
from rayd.run.checkpoints import Checkpoints
from tests.run.test_distill import interrupted, run_at, together
from tests.support.hashes import hashes

DM = (
    *("method=dm", "method.objective.batch_real=8", "method.steps=4", "method.checkpoint=2", "data=generated"),
    *("data.size=8", "data.count=60", "data.classes=3", "net=convnet", "net.width=4", "net.depth=1"),
)
MTT = (
    *("data=digits", "net=convnet_digits", "net.depth=1", "net.width=2", "method=mtt", "budget.ipc=1", "expert=quick"),
    *("expert.epochs=3", "expert.per_shard=1", "method.steps=4", "method.checkpoint=2", "method.compiled=false"),
    *("method.objective.inner_steps=2", "method.objective.batch=10", "method.objective.expert_epochs=1"),
    "method.objective.last=2",
)


def told(capsys: pytest.CaptureFixture[str], job: Any, *words: str) -> tuple[int, str]:
    """Exit code and every line."""
    verb = job.__name__.removeprefix("jobs.")
    code = command(verb, None, job.act, getattr(job, "KEYS", ""), words)
    return code, "".join(capsys.readouterr())


def broken_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """A distillation that ends between its last step and its artifact."""

    def lost(*arguments: object) -> None:
        raise Failed("the machine was taken away")

    with monkeypatch.context() as patch:
        patch.setattr("rayd.run.recorder.Recorder.finish", lost)
        code, text = told(capsys, distill, *words)
    assert code == 1 and "taken away" in text, text


def test_other_arithmetic_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rayd.run.identity.can_compile", lambda device: False)
    broken_off(monkeypatch, capsys, *DM, f"out={tmp_path}", "method.compiled=true")
    monkeypatch.setattr("rayd.run.identity.can_compile", lambda device: True)
    code, text = told(capsys, distill, *DM, f"out={tmp_path}", "method.compiled=true")
    assert code == 2 and "another run: arithmetic (eager there, compiled here)" in text and "Traceback" not in text
    assert not (tmp_path / "artifact").exists()


def test_another_kind_of_device_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*DM, f"out={tmp_path}", "method.compiled=false")
    assert told(capsys, distill, *words)[0] == 0
    before = hashes(tmp_path)
    code, text = told(capsys, distill, *words, "scale.gpus=1")
    assert code == 2 and "holds the artifact of another run: device (cpu there, cuda here)" in text, text
    assert hashes(tmp_path) == before


def test_a_buffer_that_grows_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other experts are trained into it while a distillation of the first two is broken off."""
    buffer = f"buffer={tmp_path / 'buffer'}"
    few, many = ((*MTT, buffer, f"expert.experts={count}") for count in (2, 4))
    assert told(capsys, experts, *few, f"out={tmp_path / 'whole'}")[0] == 0
    assert told(capsys, distill, *few, f"out={tmp_path / 'whole'}")[0] == 0
    broken_off(monkeypatch, capsys, *few, f"out={tmp_path / 'torn'}")
    assert told(capsys, experts, *many, f"out={tmp_path / 'more'}")[0] == 0
    assert len(list((tmp_path / "buffer").glob("*.tar"))) == 4
    assert told(capsys, distill, *few, f"out={tmp_path / 'torn'}")[0] == 0
    whole, torn = (hashes(tmp_path / name / "artifact") for name in ("whole", "torn"))
    assert {n: s for n, s in torn.items() if n != "timing.json"} == {
        n: s for n, s in whole.items() if n != "timing.json"
    }


@pytest.mark.parametrize("other", [2, 4], ids=["an earlier step", "another set"])
def test_workers_that_resume_from_different_checkpoints_end_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: int
) -> None:
    """Worker 1 is given the checkpoint of another step, or one of the same step with other numbers."""
    run = run_at(tmp_path, objective={"name": "distribution", "batch_real": 8, "classes_per_item": 1})
    interrupted(run, 5)
    before, at = hashes(tmp_path / "checkpoints"), Checkpoints.at

    def given(checkpoints: Checkpoints, step: int) -> Any:
        state = at(checkpoints, other)
        return {name: tensor + 1 if name.endswith("pixels") else tensor for name, tensor in state.items()}

    monkeypatch.setattr(Checkpoints, "at", given)
    ends = together(run)
    said = next(str(error) for error in ends.values() if isinstance(error, Failed))
    assert set(ends) == {0, 1} and None not in ends.values()
    assert "worker 0: step 4, parameters" in said and f"worker 1: step {other}, parameters" in said
    assert hashes(tmp_path / "checkpoints") == before and not (tmp_path / "artifact").exists()
