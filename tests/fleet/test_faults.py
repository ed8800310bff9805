"""Storage that fails under the fleet's workers: transient faults cost time, an outage costs an attempt and no more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rayd.run import distill as inline
from rayd.run.experts import ExpertPlan, build
from tests.support.hashes import hashes
from tests.support.runs import digits_run

pytestmark = pytest.mark.ray
RATES = {"eio": 0.02, "estale": 0.01, "503": 0.01, "short": 0.01}
QUICK = {
    "method": {"steps": 4, "checkpoint": 2, "compiled": False, "objective": {"items": 2, "inner_steps": 2, "batch": 10}}
}


def laptop(**more: Any) -> dict[str, Any]:
    return {"scale": {"name": "laptop", "timeout": 120.0, **more}}


def test_experts_on_a_storage_that_fails_and_once_is_away(ray_local: None, tmp_path: Path) -> None:
    """One operation in twenty fails, and the first actor's first unit meets a storage that does not come back in time."""
    from rayd.fleet import experts as fleet

    class Unlucky(fleet.ExpertActor):
        def ready(self) -> dict[str, Any]:
            from tests.support.faults import faulty

            self.faults = faulty(RATES, seed=len(self.name))
            self.faults.__enter__()
            return super().ready()

        def build(self, number: int) -> Any:
            from dataclasses import replace

            store, gone = self.plan.writer.store, tmp_path / "gone"
            rates, config = store.files.faults.rates, store.config
            if not gone.exists():
                gone.touch()
                store.files.faults.rates, store.config = {"eio": 1.0}, replace(config, patience=0.0)
            try:
                return super().build(number)
            finally:
                store.files.faults.rates, store.config = rates, config

    quiet = digits_run(tmp_path / "quiet")
    list(build(ExpertPlan.open(quiet)))
    run = digits_run(tmp_path / "out", changes=laptop(actors=1))
    *_, progress = fleet.build(ExpertPlan.open(run), actor_class=Unlucky)
    assert progress.done == 4 and progress.retried == 1 and (tmp_path / "gone").exists()
    assert hashes(run.experts_at) == hashes(quiet.experts_at)


@pytest.mark.slow
def test_a_distillation_on_a_storage_that_fails_and_once_is_away(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayd.fleet import distill as fleet

    quiet = digits_run(tmp_path / "quiet", changes=QUICK)
    list(build(ExpertPlan.open(quiet)))
    list(inline.distill(quiet))
    away = tmp_path / "away"

    def unlucky(config: Mapping[str, Any]) -> None:
        from rayd.fleet.distill import worker
        from tests.support.faults import faulty

        first = not away.exists()
        away.touch()
        plain = {**config["run"], "store": {"patience": 0.0}} if first else config["run"]
        with faulty({"eio": 1.0} if first else RATES, seed=2):
            worker({**config, "run": plain})

    monkeypatch.setattr(fleet, "worker", unlucky)
    changes = {**QUICK, **laptop(max_failures=1)}
    run = digits_run(tmp_path / "out", changes={**changes, "buffer": quiet.experts_at})
    list(fleet.distill(run))
    assert away.exists() and not (tmp_path / "out" / "failure.json").exists(), "what may pass is not recorded as final"
    ours, theirs = (hashes(Path(place.out) / "artifact") for place in (run, quiet))
    assert ours["codec.safetensors"] == theirs["codec.safetensors"]
