"""Every verb on a laptop's Ray as a user types it, and what no node can hold, refused by every verb."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.grounds import Ground

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

TINY = (
    "data=digits", "data.limit=256", "net.depth=2", "net.width=8", "expert=quick", "expert.experts=2", "expert.epochs=6",
    "method=mtt", "method.objective.last=2", "method.objective.inner_steps=4", "method.objective.batch=20",
    "method.compiled=false", "method.steps=4", "budget.ipc=2", "recipe=quick", "recipe.steps=20", "recipe.seeds=2",
)  # fmt: skip
SEARCH = "search.space={method.objective.last: [1, 2]}"
VERBS: dict[str, tuple[str, ...]] = {
    "plan": ("probe=3",), "prepare": ("data.limit=null",), "experts": (), "distill": (),
    "evaluate": ("controls=[random@floats]",),
}  # fmt: skip
"""In the order in which they need each other."""
EVERY: dict[str, tuple[str, ...]] = VERBS | {
    "search": (SEARCH, "search.trials=2", "search.steps=4", "search.every=2", "search.grace=2"),
    "pipeline": (),
}


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with Ground.made() as ground:
        yield ground


def command(verb: str, out: Path, *more: str) -> list[str]:
    return ["python", "-m", f"jobs.{verb}", *TINY, f"out={out}", *more]


@pytest.fixture(scope="module")
def out(ground: Ground) -> Path:
    """What the verbs leave, one after another."""
    out = ground.folder / "run"
    for verb, more in VERBS.items():
        code, text = ground.run(command(verb, out, "scale=laptop", *more))
        assert code == 0 and "Traceback" not in text, f"{verb}:\n{text[-3000:]}"
    return out


def test_the_verbs_on_a_laptop(out: Path) -> None:
    plan = (out / "plan.json").read_text()
    assert '"step_s"' in plan or '"seconds"' in plan
    assert (out / "artifact" / "controls.json").exists() and (out / "data" / "manifest.json").exists()
    stages = set(re.findall(r'"stage": "([a-z ]+)', (out / "events.jsonl").read_text()))
    assert {"experts", "distill", "evaluate", "probe of distill"} <= stages


@pytest.mark.slow
@pytest.mark.parametrize("verb", EVERY)
def test_what_no_node_holds_is_refused(ground: Ground, verb: str, request: pytest.FixtureRequest) -> None:
    """Soon: Ray's own start on a busy machine is most of the time; the longest that a placement may take is its rest."""
    place = ground.folder / f"refused-{verb}"
    words = ["scale=laptop", "scale.cpus=99", *EVERY[verb]]
    if verb == "evaluate":
        words += ["recipe.steps=21", f"artifact={request.getfixturevalue('out') / 'artifact'}"]  # not scored before
    began = time.monotonic()
    code, text = ground.run(command(verb, place, *words))
    assert code == 2 and "needs CPU 99" in text and "Traceback" not in text, text[-3000:]
    assert time.monotonic() - began < 120
