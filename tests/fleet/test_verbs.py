"""Every verb on a laptop's Ray as a user types it, and what no node can hold, refused by every verb."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.grounds import Ground, Nodes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

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


def test_the_other_verbs_on_a_laptop(ground: Ground, out: Path) -> None:
    code, text = ground.run(command("search", out, "scale=laptop", *EVERY["search"]))
    assert code == 0 and "Traceback" not in text and (out / "search" / "outcome.json").exists(), text[-3000:]
    code, text = ground.run(command("pipeline", ground.folder / "whole", "scale=laptop"))
    assert code == 0 and "Traceback" not in text, text[-3000:]
    assert (ground.folder / "whole" / "report" / "index.html").exists()


def test_every_verb_on_three_nodes_with_a_token() -> None:
    """As a user types them on a cluster, one after another; and with another token, none of them."""
    with Ground.made() as ground:
        nodes, out = Nodes(ground, (1, 1, 1)), ground.folder / "run"
        there = ("scale=cluster", "scale.cpus=1", "scale.gpus=0", "scale.threads=1")
        other = ground.folder / "other"
        other.write_text("0" * 64)
        env = {"RAY_ADDRESS": nodes.address}
        code, text = ground.run(command("experts", out, *there), {**env, "RAY_AUTH_TOKEN_PATH": str(other)})
        assert code == 2 and "token" in text and "Traceback" not in text, text[-3000:]
        for verb, more in EVERY.items():
            place = ground.folder / "whole" if verb == "pipeline" else out
            code, text = ground.run(command(verb, place, *there, *more), env)
            assert code == 0 and "Traceback" not in text, f"{verb}:\n{text[-3000:]}"
        assert (ground.folder / "whole" / "report" / "index.html").exists()


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
