"""A Run said once: read, written, named, and refused as a whole where its parts do not go together."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayd.choices import plugins
from rayd.config import Run, fingerprint, parse, run_of_card, to_dict, words
from rayd.config.scale import ScaleConfig
from rayd.distill.budget import Budget
from rayd.errors import Refused
from rayd.methods import CODECS, OBJECTIVES, TERMS

PLAIN: dict[str, Any] = {
    "data": {"name": "digits"},
    "net": {"name": "convnet", "width": 8},
    "expert": {"experts": 2},
    "method": {"codec": {"name": "lodc", "rank": 2}, "objective": {"name": "mtt", "inner_steps": 3}, "steps": 4},
    "recipe": {"name": "quick", "steps": 5},
}
ROOT = Path(__file__).resolve().parents[1]


def sentence(codec: str, objective: str, *terms: str, **codec_options: Any) -> dict[str, Any]:
    part_names = {"codec": {"name": codec, **codec_options}, "objective": {"name": objective}}
    return {**PLAIN, "method": {**part_names, "terms": [{"name": term} for term in terms]}}


def test_there_and_back() -> None:
    run = parse(Run, PLAIN)
    assert run.method.sentence == "lodc + mtt"
    assert run.method.needs == {"segment"}
    assert run.method.reads_experts
    again = parse(Run, to_dict(run))
    assert again == run
    assert again.fingerprint() == run.fingerprint()


def test_an_earlier_card_may_hold_a_label() -> None:
    """`method.name` decided nothing and is gone; a command line that gives it is refused, a card that holds it is read."""
    run = parse(Run, PLAIN)
    plain = to_dict(run)
    assert "name" not in plain["method"]
    card = {**plain, "method": {"name": "lodc", **plain["method"]}}
    assert run_of_card(card) == run_of_card(plain) == run
    with pytest.raises(Refused, match=r"method.name"):
        parse(Run, card)


@pytest.mark.parametrize(
    ("former", "rate"),
    [({"step_optimiser": "sgd", "lr_step": 10}, 1e-5), ({"step_optimiser": "adam", "lr_step": 0.01}, 1e-5), ({}, 1e-5)],
)
def test_an_earlier_card_has_a_rate_for_the_logarithm_of_the_step_size(former: dict[str, Any], rate: float) -> None:
    """SGD's is the raw one over the square of where it starts; the command line knows the raw one alone."""
    plain = to_dict(parse(Run, PLAIN))
    objective = {**plain["method"]["objective"], "step_size": 0.001}
    del objective["lr_step"]
    card = {**plain, "method": {**plain["method"], "objective": {**objective, **former}}}
    assert run_of_card(card).method.objective.lr_step == pytest.approx(rate)
    if former:
        with pytest.raises(Refused, match="step_optimiser"):
            parse(Run, card)


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    code = f"from rayd.config import *; print(parse(Run, {PLAIN!r}).fingerprint())"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == parse(Run, PLAIN).fingerprint()


def test_what_decides_the_result_decides_the_fingerprint() -> None:
    run = parse(Run, PLAIN)
    place = replace(run, out="/elsewhere", buffer="/b", scale=ScaleConfig(name="laptop", workers=2))
    assert place.fingerprint() == run.fingerprint()
    for changed in (
        replace(run, seed=1),
        replace(run, transform="zca"),
        replace(run, budget=Budget(ipc=2)),
        replace(run, scale=ScaleConfig(threads=2)),
        replace(run, method=replace(run.method, steps=5)),
    ):
        assert changed.fingerprint() != run.fingerprint()
    assert fingerprint(run) != fingerprint(place)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"codec": {"name": "pixels"}, "objective": {"name": "mtt"}}, ("pixels", "lodc", "did you mean pixel?")),
        ({"codec": {"name": "pixel"}}, ("method.objective", "a sentence needs both")),
        ({"codec": "pixel", "objective": {"name": "mtt"}}, ("method.codec", "a mapping with a name")),
        (
            {"codec": {"name": "pixel"}, "objective": {"name": "mtt"}, "part_names": ["a"]},
            ("method.part_names", "no such key"),
        ),
        ({"codec": {"name": "pixel"}, "objective": {"name": "mtt"}, "steps": 0}, ("method.steps=0", "above zero")),
        ({"codec": {"name": "pixel"}, "objective": {"name": "mtt"}, "ema": 1.0}, ("method.ema", "below 1")),
        ({"codec": {"name": "lodc", "rank": 0}, "objective": {"name": "mtt"}}, ("codec.rank",)),
    ],
)
def test_bad_methods_are_refused(method: dict[str, Any], says: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as refusal:
        parse(Run, {**PLAIN, "method": method})
    assert all(word in str(refusal.value) for word in says), refusal.value


def test_meaningless_sentences_are_refused_by_what_the_parts_declare() -> None:
    with pytest.raises(Refused, match=r"mim4dd asks .*views"):
        parse(Run, sentence("pixel", "mtt", "mim4dd"))
    with pytest.raises(Refused, match="no gradient"):
        parse(Run, sentence("pixel", "distribution", labels="soft"))


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_codec_goes_with_every_objective(codec: str, objective: str) -> None:
    run = parse(Run, sentence(codec, objective))
    assert parse(Run, to_dict(run)) == run


def test_every_term_goes_with_some_objective() -> None:
    for term in TERMS:
        assert any(TERMS[term].asks <= objective.gives for objective in OBJECTIVES.values()), term


def test_budgets_and_scales() -> None:
    assert parse(Budget, {}) == parse(Budget, {"ipc": None, "bytes": None}) == Budget(ipc=1.0)
    assert parse(Budget, {"ipc": None, "bytes": 3000}) == Budget(bytes=3000)
    with pytest.raises(Refused, match=r"budget.ipc=null"):
        Budget(ipc=1, floats=2)
    with pytest.raises(Refused, match="1/k"):
        ScaleConfig(name="laptop", gpus=0.3)
    assert ScaleConfig(name="laptop", gpus=0.25).gpus == 0.25
    with pytest.raises(Refused, match="laptop"):
        ScaleConfig(workers=2)


def test_methods_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from rayd.methods.pixel import Pixel\n\n\nclass Mine(Pixel):\n    pass\n\n\nCODECS = {'mine': Mine}\n"
    )
    assert set(words(plugins.load(str(tmp_path))).codecs) == {*CODECS, "mine"}
    run = parse(Run, {**sentence("mine", "mtt"), "methods": str(tmp_path)})
    assert run.method.part_names == ("mine", "mtt")
    assert parse(Run, to_dict(run)) == run
    (tmp_path / "again.py").write_text("from rayd.methods.pixel import Pixel\n\nCODECS = {'pixel': Pixel}\n")
    with pytest.raises(Refused, match="a name that is not taken"):
        words(plugins.load(str(tmp_path)))
    with pytest.raises(Refused, match="a folder with Python files"):
        plugins.load(str(tmp_path / "nowhere"))
