"""Whether an artifact's claim holds: what the artifact and the data alone allow is computed again and compared."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rayd.artifact.load import Artifact, load, need_card, place_of, quantise
from rayd.artifact.png import unpng
from rayd.artifact.write import preview_grid
from rayd.choices import plugins
from rayd.config import Run, run_of_card
from rayd.data.images import Splits
from rayd.data.load import closed
from rayd.data.load import load as load_data
from rayd.data.transform import Transform
from rayd.distill.budget import Ledger, Stored
from rayd.errors import Refused
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.recipe import RecipeConfig
from rayd.evaluate.row import RowName
from rayd.numbers import summary
from rayd.run.rows import RowTask, Scorer
from rayd.schema import parse
from rayd.store import Store

log = logging.getLogger(__name__)

NEAR = 1e-4
"""Between two machines' transforms fitted on the same images, in network space."""
LEVELS = 1
"""Of 255, between two machines' renderings of the same numbers: a pixel may lie on the edge of two levels."""


@dataclass(frozen=True)
class Finding:
    what: str
    holds: bool
    detail: str = ""

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'FAILS'}  {self.what}" + (f": {self.detail}" if self.detail else "")


def verify(
    uri: str | Path | Store,
    run: Run | None = None,
    scores: bool = True,
    methods: str | None = None,
    gpus: float = 0.0,
) -> Iterator[Finding]:
    """Findings, cheapest first; refused where there is no artifact.

    `run`: where the data are, if not as the card says; scores=False trains nothing. Nothing that the artifact holds is
    executed. `methods`: a folder of methods of one's own that the run used. `gpus`: of this machine, whatever the artifact
    was made on.
    """
    place = place_of(uri)
    need_card(place)
    try:
        artifact = load(place, methods)
    except Refused as error:
        yield Finding("files are as they were written", False, str(error))
        return
    yield Finding("files are as they were written", True, f"{len(artifact.contents)} files")
    if artifact.whole is not None:
        yield from _ledger(artifact)
        yield from _stored(artifact)
    config = artifact.card["config"]
    card_run = run_of_card({**config, "methods": methods}) if config else None
    source = run or card_run
    if source is None:
        yield Finding("data", False, "the card holds no resolved config, and no run was given")
        return
    try:
        why = closed(source.data, artifact.spec) if run is None else ""
        if why:
            yield Finding("data are those of the card", False, why)
            return
        splits = load_data(source.data)
        fitted = artifact.on(splits.train)
    except Refused as error:
        yield Finding("data are those of the card", False, str(error))
        return
    if artifact.whole is None:
        artifact = fitted
        yield from _ledger(artifact)
        yield from _stored(artifact)
    yield from _data(artifact, splits)
    if scores and artifact.table:
        origin = card_run or source
        yield from _scores(artifact, splits, replace(origin, scale=replace(origin.scale, gpus=gpus)))


def _ledger(artifact: Artifact) -> Iterator[Finding]:
    beside = {f"transform.{name}": Stored(t, "transform") for name, t in artifact.transform.tensors().items()}
    counted = json.loads(json.dumps(Ledger.of({**artifact.stored, **beside}).json()))
    written = dict(artifact.ledger)
    for ledger in (counted, written):
        ledger |= {part: sorted(ledger[part], key=lambda row: str(row["name"])) for part in ("rows", "beside")}
    wrong = [key for key in counted if counted[key] != written.get(key)]
    yield Finding("ledger counts what is stored", not wrong, f"differs in {', '.join(wrong)}" if wrong else "")
    size, stated = len(artifact.contents["codec.safetensors"]), artifact.ledger["bytes"]
    yield Finding("bytes are those on disk", size == stated, f"{size:,} on disk, {stated:,} in the ledger")


def _stored(artifact: Artifact) -> Iterator[Finding]:
    """What the card and the preview say of the stored numbers."""
    stated, stored = artifact.card["step_size"], artifact.step_size
    yield Finding("step size is the stored one", stated == stored, f"{stated} in the card, {stored} stored")
    drawn = quantise(preview_grid(artifact.codec, artifact.transform, artifact.spec))
    try:
        gap = int((unpng(artifact.contents["preview.png"], drawn.shape).int() - drawn.int()).abs().max())
        yield Finding("preview shows the stored images", gap <= LEVELS, f"largest difference {gap} of 255")
    except Refused as error:
        yield Finding("preview shows the stored images", False, str(error))
    finite = all(bool(torch.isfinite(number.tensor).all()) for number in artifact.stored.values())
    yield Finding("every stored number is finite", finite)


def _data(artifact: Artifact, splits: Splits) -> Iterator[Finding]:
    """The data are those that the card names, and the transform was fitted on them."""
    if splits.train.spec != artifact.spec:
        yield Finding("data are those of the card", False, f"{splits.train.spec} here, {artifact.spec} in the card")
        return
    here, claimed = (str(manifest.get("content")) for manifest in (splits.train.manifest, artifact.card["data"]))
    yield Finding("data are those of the card", here == claimed, f"{here[:12]} here, {claimed[:12]} in the card")
    fitted, stored = Transform.fit(splits.train, artifact.transform.kind).tensors(), artifact.transform.tensors()
    gap = max(float((tensor - stored[name]).abs().max()) for name, tensor in fitted.items())
    yield Finding("transform fits the training set", gap < NEAR, f"largest difference {gap:.2g}")


def _scores(artifact: Artifact, splits: Splits, run: Run) -> Iterator[Finding]:
    """The set's own rows, with networks of the same seeds."""
    table = artifact.table
    if table is None:
        return
    with plugins.using(run.own):
        recipe = parse(RecipeConfig, table["recipe"])
    scorer = Scorer(replace(run, recipe=recipe), artifact, splits)
    for row in table["rows"]:
        name = RowName.parse(row["set"])
        if row["net"] != table["nets"][0] or not name.is_distilled:
            continue
        in_card = artifact.card["scores"].get(f"{name}/{row['net']}/{row['recipe']}", {})
        yield Finding(f"card and table agree on {name}", in_card.get("mean") == row["mean"])
        steps = ImageSet.of(artifact.codec).length(recipe).steps
        networks, size = len(row["seed_list"]), scorer.nets[0].size
        log.info("verify  %s: %d networks of %d parameters, %d steps each", name, networks, size, steps)
        again = summary([score.accuracy for score in scorer.answer(RowTask(name, 0, tuple(row["seed_list"])))])
        near = max(math.hypot(again["ci95"], row["ci95"]), 0.005)
        detail = f"{100 * row['mean']:.2f} % in the table, {100 * again['mean']:.2f} % again, {row['net']}"
        yield Finding(f"score of {name}", abs(again["mean"] - row["mean"]) <= near, detail)
