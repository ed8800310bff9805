"""Whether an artifact's claim holds: everything that can be recomputed from the artifact and the data alone, is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import rayd
from rayd.artifact.load import Artifact, reader
from rayd.artifact.write import preview
from rayd.config import Run, run_of_card
from rayd.data.load import load as load_data
from rayd.data.transform import Transform
from rayd.distill.budget import Ledger, Stored
from rayd.errors import Refused
from rayd.evaluate.recipe import RecipeConfig
from rayd.nets.convnet import NetConfig
from rayd.run.rows import RowTask, Scorer
from rayd.schema import parse
from rayd.stats import summary
from rayd.store import Store

NEAR = 1e-4
"""Between two machines' transforms fitted on the same images, in network space."""


@dataclass(frozen=True)
class Finding:
    what: str
    holds: bool
    detail: str = ""

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'FAILS'}  {self.what}" + (f": {self.detail}" if self.detail else "")


def verify(uri: str | Path | Store, run: Run | None = None, scores: bool = True) -> Iterator[Finding]:
    """Findings, cheapest first. `run`: where the data are, if not as the card says; scores=False trains nothing."""
    try:
        artifact = rayd.load(reader(uri))
    except Refused as error:
        yield Finding("files are as they were written", False, str(error))
        return
    yield Finding("files are as they were written", True, f"{len(artifact.contents)} files")
    yield from _ledger(artifact)
    yield from _inside(artifact)
    card_run = run_of_card(artifact.card["config"]) if artifact.card["config"] else None
    source = run or card_run
    if source is None:
        yield Finding("data", False, "the card holds no resolved config, and no run was given")
        return
    yield from _recompute(artifact, source, card_run or source, scores)


def _ledger(artifact: Artifact) -> Iterator[Finding]:
    beside = {f"transform.{name}": Stored(t, "transform") for name, t in artifact.transform.tensors().items()}
    counted, told = json.loads(json.dumps(Ledger.of({**artifact.stored, **beside}).json())), dict(artifact.ledger)
    for rows in (counted, told):
        rows |= {part: sorted(rows[part], key=lambda row: str(row["name"])) for part in ("rows", "beside")}
    wrong = [key for key in counted if counted[key] != told.get(key)]
    yield Finding("ledger counts what is stored", not wrong, f"differs in {', '.join(wrong)}" if wrong else "")
    size, said = len(artifact.contents["codec.safetensors"]), artifact.ledger["bytes"]
    yield Finding("bytes are those on disk", size == said, f"{size:,} on disk, {said:,} in the ledger")


def _inside(artifact: Artifact) -> Iterator[Finding]:
    """The card's and the picture's account of the stored numbers."""
    told, held = artifact.card["step_size"], artifact.step_size
    yield Finding("step size is the stored one", told == held, f"{told} told, {held} stored")
    drawn = preview(artifact.codec, artifact.transform, artifact.spec)
    yield Finding("preview shows the stored images", drawn == artifact.contents["preview.png"])
    finite = all(bool(torch.isfinite(one.tensor).all()) for one in artifact.stored.values())
    yield Finding("every stored number is finite", finite)


def _recompute(artifact: Artifact, source: Run, told: Run, scores: bool) -> Iterator[Finding]:
    splits = load_data(source.data)
    here, claimed = (str(one.get("content")) for one in (splits.train.manifest, artifact.card["data"]))
    yield Finding("data are those of the card", here == claimed, f"{here[:12]} here, {claimed[:12]} told")
    fitted = Transform.fit(splits.train, artifact.transform.kind)
    ours = artifact.transform.tensors()
    gap = max(float((one - ours[name]).abs().max()) for name, one in fitted.tensors().items())
    yield Finding("transform fits the training set", gap < NEAR, f"largest difference {gap:.2g}")
    table = json.loads(artifact.contents["controls.json"]) if "controls.json" in artifact.contents else None
    if not scores or table is None:
        return
    recipe, nets = parse(RecipeConfig, table["recipe"]), table["nets"]
    configs: tuple[NetConfig, ...] = recipe.nets or (told.net,)
    scorer = Scorer(replace(told, recipe=recipe), artifact, splits)
    for row in table["rows"]:
        if row["net"] != nets[0] or not row["set"].startswith("distilled"):
            continue
        told_row = artifact.card["scores"].get(f"{row['set']}/{row['net']}/{row['recipe']}", {})
        yield Finding(f"card and table agree on {row['set']}", told_row.get("mean") == row["mean"])
        recomputed = scorer.answer(RowTask(row["set"], 0, tuple(row["seed_list"])))
        found = summary([score.accuracy for score in recomputed])
        gap = abs(found["mean"] - row["mean"])
        near = max(math.hypot(found["ci95"], row["ci95"]), 0.005)
        said = f"{100 * row['mean']:.2f} % told, {100 * found['mean']:.2f} % again, {configs[0].name}"
        yield Finding(f"score of {row['set']}", gap <= near, said)
