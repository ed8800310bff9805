"""Every verb on storage of which one operation in twenty fails: the same bytes, only later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs import distill, evaluate, experts, export, plan, report
from jobs.compose import command
from rayd.config import config_identity
from rayd.schema import to_dict
from rayd.store import Store, StoreConfig, configure
from tests.support.faults import faulty
from tests.support.hashes import hashes

SMALL = (
    *("data=digits", "net=convnet_digits", "net.depth=1", "net.width=2", "method=mtt", "budget.ipc=1"),
    *("expert=quick", "expert.experts=4", "expert.epochs=3", "expert.per_shard=2", "method.steps=4"),
    *("method.compiled=false", "method.objective.inner_steps=2", "method.objective.batch=10"),
    *("method.objective.expert_epochs=1", "method.objective.last=2", "method.checkpoint=1"),
    *("recipe.steps=10", "recipe.seeds=2"),
)
VERBS: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "plan": (plan, ("probe=0",)),
    "experts": (experts, ()),
    "distill": (distill, ()),
    "evaluate": (evaluate, ("controls=[random@floats]",)),
    "report": (report, ()),
    "export": (export, ()),
}
RATES = {"eio": 0.02, "estale": 0.01, "503": 0.01, "short": 0.01}


def run(out: Path, verbs: Mapping[str, tuple[Any, tuple[str, ...]]] = VERBS) -> None:
    for verb, (job, words) in verbs.items():
        keys = getattr(job, "KEYS", "")
        assert command(verb, None, job.act, keys, [*SMALL, *words, f"out={out}"]) == 0, verb


def lasting(out: Path) -> dict[str, str]:
    """Of what a run leaves for good: artifact and buffer, without times."""
    both = {f"{part}/{name}": sha256 for part in ("artifact", "experts") for name, sha256 in hashes(out / part).items()}
    return {name: sha256 for name, sha256 in both.items() if Path(name).name not in ("timing.json", "events.jsonl")}


def test_transient_faults_under_every_verb_change_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayd.store.patience.FIRST_S", 0.001)
    monkeypatch.chdir(tmp_path)
    run(Path("quiet"))
    (tmp_path / "quiet").rename(tmp_path / "kept")
    with faulty(RATES, seed=5) as faults:
        run(Path("quiet"))
    assert sum(faults.counts[kind] for kind in RATES) > 10, faults.counts
    assert lasting(tmp_path / "quiet") == lasting(tmp_path / "kept")
    assert len(lasting(tmp_path / "kept")) > 8


@pytest.mark.parametrize("verb", ["experts", "distill", "evaluate"])
def test_a_full_disk_ends_a_verb_with_the_files_name(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = list(VERBS)
    run(Path("out"), {name: VERBS[name] for name in names[1 : names.index(verb)]})
    capsys.readouterr()
    job, words = VERBS[verb]
    with faulty({"full": 1.0}):
        code = command(verb, None, job.act, getattr(job, "KEYS", ""), [*SMALL, *words, "out=out"])
    said = capsys.readouterr().err
    assert code == 1 and "no room left" in said and "/out/" in said and "Traceback" not in said, said
    run(Path("out"), {verb: VERBS[verb]})


def test_patience_is_a_key_of_a_run_and_no_part_of_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[float, str]] = []

    def act(asked: Any) -> int:
        assert "store" not in config_identity(to_dict(asked.run))
        seen.append((Store("anywhere").config.patience, asked.run.fingerprint()))
        return 0

    for words in ((), ("store.patience=7",)):
        assert command("distill", None, act, "", [*SMALL, *words]) == 0
    configure(StoreConfig())
    assert [patience for patience, _ in seen] == [120, 7] and seen[0][1] == seen[1][1]
    assert command("distill", None, act, "", [*SMALL, "store.patience=-1"]) == 2
