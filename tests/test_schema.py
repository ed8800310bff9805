"""Reading is strict, writing is canonical, fingerprints are stable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from rayd.errors import Refused
from rayd.schema import fingerprint, parse, to_dict


@dataclass(frozen=True)
class Leaf:
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"
    sides: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    name: str
    leaf: Leaf = field(default_factory=Leaf)
    depth: int | None = None
    leaves: tuple[Leaf, ...] = ()
    on: bool = False


FULL: dict[str, Any] = {
    "name": "oak",
    "leaf": {"rate": 1, "kind": "b", "sides": [1, 2], "pair": [1, 2.5], "weights": {"x": 1}},
    "depth": 3,
    "leaves": [{}, {"rate": 0.5}],
    "on": True,
}


def test_there_and_back() -> None:
    tree = parse(Tree, FULL)
    assert tree.leaf == Leaf(1.0, "b", (1, 2), (1.0, 2.5), {"x": 1.0})
    assert tree.leaves == (Leaf(), Leaf(rate=0.5))
    assert parse(Tree, to_dict(tree)) == tree
    assert parse(Tree, {"name": "x", "depth": None}).depth is None


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"name": "x", "leef": {}}, ("leef", "name, leaf, depth", "did you mean leaf?")),
        ({"name": "x", "leaf": {"rat": 1}}, ("leaf.rat", "did you mean leaf.rate?")),
        ({"name": 3}, ("name=3", "a text")),
        ({}, ("name=(missing)", "a text")),
        ({"name": "x", "leaf": {"rate": "fast"}}, ("leaf.rate=fast", "a number")),
        ({"name": "x", "leaf": {"rate": True}}, ("leaf.rate=True", "a number")),
        ({"name": "x", "leaf": {"kind": "c"}}, ("leaf.kind=c", "a | b")),
        ({"name": "x", "leaf": {"pair": [1]}}, ("leaf.pair=[1]", "a list of a number")),
        ({"name": "x", "depth": 1.5}, ("depth=1.5", "a whole number or null")),
        ({"name": "x", "on": 1}, ("on=1", "true or false")),
        ({"name": "x", "leaves": [{"rate": None}]}, ("leaves[0].rate=None",)),
        ({"name": "x", "leaf": 3}, ("leaf=3", "a mapping with the keys rate, kind")),
        ([1], ("a mapping",)),
    ],
)
def test_refusals_name_the_place_the_value_and_what_is_allowed(mapping: Any, says: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as refusal:
        parse(Tree, mapping)
    assert all(word in str(refusal.value) for word in says), refusal.value
    assert "\n" not in str(refusal.value)


def test_fingerprint_does_not_see_order_and_never_changes() -> None:
    tree = parse(Tree, FULL)
    assert fingerprint(tree) == fingerprint(dict(reversed(to_dict(tree).items())))
    assert fingerprint(tree) == "ef2781944acdf446c1581f454ca2bc53465add75cad9339a7de9cc322bb628dd"
    assert fingerprint(tree) != fingerprint(parse(Tree, FULL | {"depth": 4}))
