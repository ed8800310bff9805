"""Scored networks of an evaluation under way: a file each beside the artifact, so that an interrupted one goes on."""

from __future__ import annotations

from dataclasses import asdict

from rayd.artifact.load import Artifact
from rayd.config import Run
from rayd.data.images import Splits
from rayd.evaluate.row import RowName
from rayd.evaluate.score import Score
from rayd.machine import device_kind
from rayd.schema import fingerprint, parse, to_dict
from rayd.store import Store

KEPT = "score-"
"""How the names of these files begin."""


class KeptScores:
    """Found again under what decides them: the artifact, the run, its recipe, the images. Removed once the card has them."""

    def __init__(self, store: Store, run: Run, artifact: Artifact, splits: Splits) -> None:
        files = {name: sha256 for name, sha256 in artifact.card["files"].items() if name.endswith(".safetensors")}
        decides = {
            "files": files,
            "run": run.identity(),
            "recipe": to_dict(run.recipe),
            "images": [part.manifest["content"] for part in (splits.train, splits.test)],
            "device": device_kind(run.scale.gpus),
        } | ({"methods": run.own.source} if run.own.source else {})
        self.store, self.prefix = store, f"{KEPT}{fingerprint(decides)[:12]}-"

    def find(self, row: RowName, net: int, seed: int) -> Score | None:
        name = self._name(row, net, seed)
        return parse(Score, self.store.read_json(name)) if self.store.exists(name) else None

    def keep(self, row: RowName, net: int, score: Score) -> None:
        self.store.write_json(self._name(row, net, score.seed), asdict(score))

    def clear(self) -> None:
        for name in self.store.list(self.prefix):
            self.store.delete(name)

    def _name(self, row: RowName, net: int, seed: int) -> str:
        return f"{self.prefix}{str(row).replace('/', '+')}-{net}-{seed}.json"
