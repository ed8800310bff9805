"""Scores of single networks, a file each: where an evaluation goes on from, and where the next run finds its controls.

A row of the set itself is kept beside the artifact until the card has it, so that an interrupted evaluation goes on. A row
of real images is the same for every method of one budget. It is kept in a folder that runs share, under all that decides
it: images, transform, recipe, network, the images chosen, the network's seed, device and threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rayd.artifact.load import Artifact
from rayd.config import Run
from rayd.data.images import Splits
from rayd.evaluate.recipe import RecipeConfig
from rayd.evaluate.row import RowName
from rayd.evaluate.score import Score, check
from rayd.machine import device_kind
from rayd.run.compressed import FINALISTS, OTHERS, heights
from rayd.schema import fingerprint, parse, to_dict
from rayd.store import Store

KEPT = "score-"
"""How the names of a set's own files begin."""
COUNTED = ("seeds", "until")
"""Keys of a recipe that say how many networks there are, and nothing of one."""
NAMED = ("name", "nets", *COUNTED)
"""Those that decide nothing of one network."""
NEAR = 0.03
"""What a file may miss of its budget for a control of the whole."""
CONTROL_SEED = 0
"""Networks, orders and features of controls: the same for every seed of a distillation."""


class KeptScores:
    """Of the set itself: found again under what decides them, the artifact, the run, its recipe, the images."""

    def __init__(self, store: Store, run: Run, artifact: Artifact, splits: Splits) -> None:
        files = {name: sha256 for name, sha256 in artifact.card["files"].items() if name.endswith(".safetensors")}
        decides = {
            "files": files,
            "run": run.identity(),
            "recipe": _without(run.recipe, COUNTED),
            "images": contents(splits),
            "device": device_kind(run.scale.gpus),
        } | ({"methods": run.own.source} if run.own.source else {})
        self.store, self.prefix = store, f"{KEPT}{fingerprint(decides)[:12]}-"

    def find(self, row: RowName, net: int, seed: int) -> Score | None:
        name = self._name(row, net, seed)
        return parse(Score, self.store.read_json(name)) if self.store.exists(name) else None

    def keep(self, row: RowName, net: int, score: Score) -> Score:
        self.store.write_json(self._name(row, net, score.seed), asdict(score))
        return score

    def clear(self) -> None:
        for name in self.store.list(self.prefix):
            self.store.delete(name)

    def _name(self, row: RowName, net: int, seed: int) -> str:
        return f"{self.prefix}{_slug(row)}-{net}-{seed}.json"


class ControlScores:
    """Of real images, shared by runs. The first score under a name stays, and a later writer takes it over, so that all
    tables agree to the digit."""

    def __init__(self, run: Run, artifact: Artifact, splits: Splits) -> None:
        self.run, self.artifact, self.splits = run, artifact, splits
        self.store = Store(run.scores_at)

    def holds(self, row: RowName) -> bool:
        """Whether a row is the same for every artifact of this budget: not one that the artifact's teacher labels."""
        return (row.is_coreset or row.kind == "full") and self.run.recipe.labels != "teacher"

    def find(self, row: RowName, net: int, seed: int) -> Score | None:
        name = self._name(row, net, seed)
        return parse(Score, self.store.read_json(name)["score"]) if self.store.exists(name) else None

    def keep(self, row: RowName, net: int, score: Score) -> Score:
        name, record = self._name(row, net, score.seed), {"identity": self.identity(row, net), "score": asdict(score)}
        if self.store.claim(name, record):  # another was here first
            return parse(Score, self.store.read_json(name)["score"])
        return score

    def identity(self, row: RowName, net: int) -> dict[str, Any]:
        """All that decides the score of a network but its seed."""
        run, artifact, ledger = self.run, self.artifact, self.artifact.ledger
        room = room_of(run, artifact)
        nets = [to_dict(config) for config in run.recipe.nets or (run.net,)]
        decides = {
            "row": str(row),
            "recipe": _without(run.recipe, NAMED),
            "rate": check(run.recipe, artifact.step_size, None),
            "net": nets[net],
            "images": contents(self.splits),
            "transform": artifact.transform.fingerprint(),
            "device": device_kind(run.scale.gpus),
            "threads": run.scale.threads,
        }
        if row.is_coreset and row.kind != "random":
            decides["features"] = nets[0]
        if row.kind in run.own.controls:
            decides["methods"] = run.own.source
        if row.budget == "best":  # a format, quality and size, chosen on the validation images
            decides |= {
                "validation": str(self.splits.val.manifest["content"]),
                "chosen by": nets[0],
                "finalists": FINALISTS,
                "other formats": OTHERS,
                "heights": list(heights(artifact.spec)),
            }
        if row.budget in ("jpeg", "best"):
            return decides | {"bytes": room}
        if row.is_coreset:
            whole = len(self.splits.train)
            return decides | {"count": row.images(ledger["floats"], room, artifact.spec, whole)}
        return decides

    def _name(self, row: RowName, net: int, seed: int) -> str:
        return f"{_slug(row)}-{fingerprint(self.identity(row, net))[:16]}-{seed}.json"


def room_of(run: Run, artifact: Artifact) -> int:
    """Bytes for a control. Files of one budget differ by their headers: one that comes near it leaves its control the whole
    budget, so that all methods of a budget share their controls, and none is smaller than the set."""
    size, whole = int(artifact.ledger["bytes"]), run.budget.file_size(artifact.spec)
    return whole if (1 - NEAR) * whole <= size <= whole else size


def _without(recipe: RecipeConfig, names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in to_dict(recipe).items() if key not in names}


def contents(splits: Splits) -> list[str]:
    """The images that decide a score."""
    return [str(part.manifest["content"]) for part in (splits.train, splits.test)]


def _slug(row: RowName) -> str:
    return str(row).replace("/", "+")
