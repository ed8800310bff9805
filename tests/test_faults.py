"""Every verb on storage of which one operation in twenty fails: the same bytes, only later."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs import distill, evaluate, experts, export, plan, prepare, report, search
from jobs.compose import command
from rayd.config import config_identity
from rayd.schema import to_dict
from rayd.store import Store, StoreConfig, configure, within
from tests.support.faults import faulty
from tests.support.hashes import hashes
from tests.support.loopback import s3_server
from tests.support.proxy import faulty_proxy

SMALL = (
    *("data=digits", "net=convnet_digits", "net.depth=1", "net.width=2", "method=mtt", "budget.ipc=1"),
    *("expert=quick", "expert.experts=4", "expert.epochs=3", "expert.per_shard=2", "method.steps=4"),
    *("method.compiled=false", "method.objective.inner_steps=2", "method.objective.batch=10"),
    *("method.objective.expert_epochs=1", "method.objective.last=2", "method.checkpoint=1"),
    *("recipe.steps=10", "recipe.seeds=2"),
)
DIALS = "search.space={method.optimiser.lr: [0.01, 0.1]}"
VERBS: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "prepare": (prepare, ("per_shard=400",)),
    "plan": (plan, ("probe=0",)),
    "experts": (experts, ()),
    "distill": (distill, ()),
    "evaluate": (evaluate, ("controls=[random@floats]",)),
    "verify": (evaluate, ("verify={artifact}",)),
    "report": (report, ()),
    "export": (export, ()),
    "search": (
        search,
        (DIALS, "search.searcher=grid", "search.steps=2", "search.every=1", "search.grace=1", "search.winner=0"),
    ),
}
RATES = {"eio": 0.015, "estale": 0.01, "503": 0.01, "short": 0.01, "stall": 0.005}


def told(out: str, verb: str, *more: str) -> int:
    job, words = VERBS[verb]
    named = [word.format(artifact=within(out, "artifact")) if word.startswith("verify=") else word for word in words]
    name = "evaluate" if verb == "verify" else verb
    return command(name, None, job.act, getattr(job, "KEYS", ""), [*SMALL, *named, *more, f"out={out}"])


def run(out: str, verbs: Sequence[str] = tuple(VERBS), *more: str) -> None:
    for verb in verbs:
        assert told(out, verb, *more) == 0, verb


def lasting(out: str | Path) -> dict[str, str]:
    """Of what a run leaves for good: artifact, buffer, shards of images and trials, without times."""
    parts = ("artifact", "experts", "data", "search", "export")
    every = {f"{part}/{name}": sha256 for part in parts for name, sha256 in hashes(within(str(out), part)).items()}
    timed = (
        "timing.json",
        "events.jsonl",
        "index.html",
        "trials.jsonl",
        "trials.parquet",
        "metrics.jsonl",
        "plan.json",
        "outcome.json",
    )
    return {
        name: sha256
        for name, sha256 in every.items()
        if Path(name).name not in timed and not name.startswith("search/results")
    }


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every verb without a fault."""
    folder = tmp_path_factory.mktemp("quiet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("out")
    return folder


def test_transient_faults_under_every_verb_change_nothing_but_time(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayd.store.patience.FIRST_S", 0.001)
    monkeypatch.chdir(tmp_path)
    counts: dict[str, int] = {}
    for verb in VERBS:
        with faulty(RATES, seed=len(counts)) as faults:
            run("out", [verb])
        counts[verb] = sum(faults.counts[kind] for kind in RATES)
    assert sum(counts.values()) > 10 and sum(count > 0 for count in counts.values()) > len(VERBS) / 2, counts
    assert lasting("out") == lasting(quiet / "out")
    assert len(lasting("out")) > 20


WRITERS = ("prepare", "experts", "distill", "evaluate", "report", "export", "search")


SELDOM = ("prepare", "plan", "verify", "report", "export", "search")
OFTEN = [pytest.param(verb, marks=pytest.mark.slow if verb in SELDOM else ()) for verb in VERBS]


@pytest.mark.parametrize("verb", OFTEN)
def test_a_storage_that_stays_broken_ends_a_verb_with_the_files_name(
    verb: str, quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk is final at once; what is transient is given up when patience ends. The same command then goes on."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(quiet / "out", "out")
    for name in {"prepare": ["data"], "experts": ["experts"], "distill": ["artifact"], "search": ["search"]}.get(
        verb, []
    ):
        shutil.rmtree(Path("out") / name)
    if verb == "evaluate":
        shutil.rmtree(Path("out/artifact"))
        run("out", ["distill"])
    for name in {"report": "report/drawn_from.json", "export": "export/parquet/README.md"}.get(verb, "").split():
        (Path("out") / name).unlink()
    for rates, words, says in (
        ({"full": 1.0}, (), "no room left"),
        ({"eio": 1.0}, ("store.patience=0",), "store.patience"),
    ):
        if "full" in rates and verb not in WRITERS:
            continue
        capsys.readouterr()
        with faulty(rates):
            code = told("out", verb, *words)
        said = capsys.readouterr().err
        assert code == 1 and says in said and "/out" in said and "Traceback" not in said, said
    configure(StoreConfig())
    run("out", [verb])
    assert lasting("out") == lasting(quiet / "out") or verb == "distill"


@pytest.mark.slow
def test_every_verb_on_an_object_store_behind_a_proxy_that_drops_stalls_and_answers_503(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a server of Amazon's protocol on the loopback. A plan needs no store, and a search has its trials there."""
    monkeypatch.chdir(tmp_path)
    rates = {"drop": 0.02, "503": 0.02, "cut": 0.005, "stall": 0.005}
    patient = "&patience=60&request_timeout=2&connect_timeout=2"
    with s3_server() as bucket, faulty_proxy(bucket + patient, rates, seed=4, stall_s=5.0) as (uri, proxy):
        run(uri)
        assert all(proxy.counts[kind] for kind in rates), proxy.counts
        assert lasting(bucket) == lasting(quiet / "out")
        assert not Store(bucket).list("lease/")


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
