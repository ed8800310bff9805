"""What the JSON files of an artifact hold, field by field: an artifact may come from a stranger, and what is read here is
what everything after it relies on. Keys that are not named here may stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayd.distill.budget import BESIDE, BOUND
from rayd.distill.storage import FORM, SCALE, Storage
from rayd.errors import Refused, refuse
from rayd.evaluate.row import BUDGETS, KINDS, WAYS, RowName
from rayd.schema import fields, from_json

Texts = Mapping[str, str]
Anything = Mapping[str, Any]

CARD: Mapping[str, Any] = {
    "images": int, "shape": tuple[int, int, int], "classes": tuple[str, ...], "codec": Anything, "roles": Texts,
    "storage": Texts, "files": Texts, "sentence": str, "fingerprint": str, "step_size": float | None, "data": Anything,
    "seeds": Mapping[str, int], "config": Anything, "claim": Anything, "versions": Anything, "ledger": Anything,
    "reads": int, "scores": Anything,
}  # fmt: skip
TOTALS: Mapping[str, Any] = {"floats": int, "bytes": int, "ipc": float, "beside_floats": int}
SCORE: Mapping[str, Any] = {
    "set": str, "view": str, "net": str, "recipe": str, "mean": float, "std": float, "n": int, "ci95": float,
    "images": int | None, "bytes": int, "seed_list": tuple[int, ...],
}  # fmt: skip
LEDGER: Mapping[str, Any] = {
    "rows": tuple[Any, ...], "beside": tuple[Any, ...], "by_role": Mapping[str, int], "floats": int, "bytes": int,
    "beside_floats": int, "beside_bytes": int,
}  # fmt: skip
ROW: Mapping[str, Any] = {"name": str, "role": str, "shape": tuple[int, ...], "floats": int, "dtype": str, "bytes": int}
TABLE: Mapping[str, Any] = {
    "rows": tuple[Any, ...], "skipped": Texts, "verdict": Anything, "robust": Mapping[str, float], "recipe": Anything,
    "nets": tuple[str, ...], "protocol": str, "floats": int, "bytes": int,
}  # fmt: skip
VERDICT: Mapping[str, Any] = {"floats": str, "bytes": str, "overall": str, "why": tuple[str, ...]}
ROLES = BOUND + BESIDE
LARGEST_SIDE, MOST_CLASSES, LONGEST_NAME = 2**10, 10**5, 200
AGAIN = "fetch the artifact again, or remove its folder and distil again"


def plain(data: bytes, name: str) -> Any:
    """What one of the files holds."""
    try:
        return from_json(data)
    except ValueError as error:
        raise Refused(f"{name}: not readable as JSON ({error}); {AGAIN}") from error


def card(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The card, if every field is what it should be."""
    read = fields(mapping, CARD, "card.json")
    shape, classes, about = read["shape"], read["classes"], "card.json: "
    if shape[0] not in (1, 3) or not all(1 <= side <= LARGEST_SIDE for side in shape[1:]):
        raise refuse(f"{about}shape", shape, f"1 or 3 channels and two sides of 1 to {LARGEST_SIDE}")
    if (
        not 1 <= len(classes) <= MOST_CLASSES
        or len(set(classes)) != len(classes)
        or max(map(len, classes)) > LONGEST_NAME
    ):
        raise refuse(
            f"{about}classes", classes, f"1 to {MOST_CLASSES} names of at most {LONGEST_NAME} letters, each once"
        )
    totals = fields(read["ledger"], TOTALS, "card.json: ledger")
    counts = {"images": read["images"], "reads": read["reads"], **totals}
    for name, count in counts.items():
        if not 0 <= count < 2**53:
            raise refuse(f"{about}{name}", count, "a count")
    if set(read["roles"]) != set(read["storage"]):
        raise refuse(
            f"{about}storage", sorted(read["storage"]), f"the numbers that have a role: {sorted(read['roles'])}"
        )
    for name, role in read["roles"].items():
        if role not in ROLES or name.endswith((SCALE, FORM)):
            raise refuse(f"{about}roles.{name}", role, " | ".join(ROLES))
        Storage.parse(read["storage"][name])
    for name, row in read["scores"].items():
        _score(row, f"card.json: scores.{name}")
    fields(read["codec"], {"name": str}, "card.json: codec")
    parts = {name: Anything for name in ("data", "net", "method") if name in read["config"]}
    method = fields(read["config"], parts, "card.json: config").get("method", {})
    fields(method, {name: Anything for name in ("codec", "objective") if name in method}, "card.json: config.method")
    _texts(read["claim"], ("select", "verdict"), "card.json: claim")
    _texts(read["data"], ("name", "content"), "card.json: data")
    return read


def ledger(data: bytes) -> dict[str, Any]:
    read = fields(plain(data, "ledger.json"), LEDGER, "ledger.json")
    for part in ("rows", "beside"):
        for i, row in enumerate(read[part]):
            one = fields(row, ROW, f"ledger.json: {part}[{i}]")
            if one["role"] not in ROLES or min(one["floats"], one["bytes"], *one["shape"], 2**53) < 0:
                raise refuse(f"ledger.json: {part}[{i}]", one, f"counts, under one of {' | '.join(ROLES)}")
    return read


def table(data: bytes) -> dict[str, Any]:
    """controls.json."""
    read = fields(plain(data, "controls.json"), TABLE, "controls.json")
    fields(read["verdict"], VERDICT, "controls.json: verdict")
    fields(read["recipe"], {"name": str}, "controls.json: recipe")
    if not read["nets"]:
        raise refuse("controls.json: nets", read["nets"], "at least one network")
    for i, row in enumerate(read["rows"]):
        _score(row, f"controls.json: rows[{i}]")
    return read


def transform(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Meta and numbers of transform.json."""
    read = fields(plain(data, "transform.json"), {"meta": Anything, "tensors": Anything}, "transform.json")
    meta = fields(read["meta"], {"kind": str, "source": str}, "transform.json: meta")
    kinds = dict.fromkeys(read["tensors"], tuple[float, ...])
    return meta, fields(read["tensors"], kinds, "transform.json: tensors")


def _score(row: Any, where: str) -> None:
    read = fields(row, SCORE, where)
    name = RowName.parse(read["set"])
    coreset = bool(name.budget) and name.kind.isidentifier()  # a control of one's own too
    known = (name.kind in KINDS or coreset) and name.budget in ("", *BUDGETS) and name.way in ("", *WAYS)
    if not known or str(name) != read["set"]:
        raise refuse(f"{where}.set", read["set"], f"{' | '.join(KINDS)} @ {' | '.join(BUDGETS)} / {' | '.join(WAYS)}")
    shares = [read[name] for name in ("mean", "std", "ci95")]
    if not (0 <= read["mean"] <= 1 and min(shares) >= 0 and max(shares) < 100 and read["n"] >= 1):
        raise refuse(where, shares, "an accuracy from 0 to 1, its deviation, and the interval of at least one network")
    if not 1 <= read["bytes"] < 2**53 or not 0 <= (read["images"] or 0) < 2**53:
        raise refuse(f"{where}.bytes", read["bytes"], "a size of at least one byte")


def _texts(mapping: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    fields(mapping, {name: str for name in names if name in mapping}, where)
