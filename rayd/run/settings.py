"""Settings that follow from the data: how large images become, how deep and wide a network, how long experts train, what
window of their trajectories is matched, how many images a class.

Rules of thumb with their numbers in one place. They hold where nobody says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rayd.data.config import DataConfig
from rayd.data.remarks import UNEVEN
from rayd.data.sources.formats import place
from rayd.data.survey import Survey, quick_survey
from rayd.schema import parse

SIDES = (8, 16, 32, 64, 128)
"""Sides that pictures of many sizes become."""
LARGEST = 128
"""A larger side is asked for by hand: at 256 px everything takes four times as long."""
NEAR = 1.1
"""Pictures are enlarged by as much at most, where a side allows it."""
CROP = 4 / 3
"""Pictures up to this ratio of sides are cut to squares, longer ones are squashed."""
IMAGES = 100
"""Of the synthetic set, about, where classes have enough."""
STEPS = 20
"""Of an expert's epoch, at least, where the batch can be made smaller."""
COVERED = 60
"""Steps of an expert that one segment covers, at least."""
MOST_EPOCHS = 60


@dataclass(frozen=True)
class Setting:
    """A key that follows from the data, and the reason."""

    key: str
    value: Any
    why: str

    @property
    def word(self) -> str:
        return f"{self.key}={str(self.value).lower()}"


def follow(mapping: Mapping[str, Any], keys: Collection[str], own: bool) -> tuple[Setting, ...]:
    """What follows from the data of a run in plain values: for images of one's own, and all of it under preset=own. `keys`
    were said already: they stand, and so do the other keys of a group whose file was chosen."""
    data, method, scale = (mapping.get(part) or {} for part in ("data", "method", "scale"))
    if not isinstance(data, Mapping) or not (own or data.get("name") == "folder"):
        return ()
    path, submitted = data.get("path"), isinstance(scale, Mapping) and scale.get("name") == "cluster"
    if submitted and path is not None and place(str(path)) is None:
        return ()  # a command is read where it is submitted too, which need not see the data
    survey = quick_survey(parse(DataConfig, data, "data"))
    objective = method.get("objective") if isinstance(method, Mapping) else None
    name = objective.get("name") if isinstance(objective, Mapping) else None
    gpus = scale.get("gpus", 0) if isinstance(scale, Mapping) else 0
    every = of_data(survey) + (of_run(survey, gpus, str(name)) if own else [])
    chosen = {group for group in ("net", "expert", "budget") if group in keys}
    chosen |= {"budget"} if any(key.startswith("budget.") for key in keys) else set()
    return tuple(one for one in every if one.key not in keys and one.key.partition(".")[0] not in chosen)


def of_data(survey: Survey) -> list[Setting]:
    """How pictures become images."""
    width, height = sorted(survey.sides)[len(survey.sides) // 2]
    size = _size(survey)
    as_is = survey.same and survey.sides[0][0] == size
    out = [Setting("data.size", size, "as the pictures are" if as_is else f"a median picture is {width}x{height}")]
    if not as_is:
        resize = "crop" if survey.aspect <= CROP else "squash"
        out.append(Setting("data.resize", resize, f"long side by short side: {survey.aspect:.2f}"))
    out.append(Setting("data.channels", 1 if survey.grey else 3, "all pictures are grey" if survey.grey else "colour"))
    bits = max(8, survey.white.bit_length())
    bits += bits % 2
    if survey.white and bits < 16:
        out.append(Setting("data.bits", bits, f"values of 16-bit pictures up to {survey.white}"))
    if survey.imbalance > UNEVEN:
        out.append(
            Setting("data.balance", True, f"classes differ by {survey.imbalance:.0f}:1; accuracies weigh them alike")
        )
    return out


def of_run(survey: Survey, gpus: float, objective: str) -> list[Setting]:
    """Network, experts, window and budget."""
    size, n = _size(survey), max(1, round(0.9 * survey.parts["train"].listed))
    classes, smallest = len(survey.classes), min(survey.sizes, default=1)
    deepest = (32 if size == 28 else size).bit_length() - 1
    ipc = max(1, min(IMAGES // classes, 10, smallest // 10))
    batch = min(128, max(16, 2 ** int(math.log2(max(n / STEPS, 1)))))
    steps = math.ceil(n / batch)
    covers = min(10, max(2, math.ceil(COVERED / steps)))
    last = (5 if ipc < 10 else 15) * covers // 2
    epochs = min(MOST_EPOCHS, max(20, last + covers))
    out = [
        Setting("net.depth", max(min(2, deepest), deepest - 2), f"{size} px, halved by every block"),
        Setting("net.width", 128 if gpus else 32, "on a GPU" if gpus else "on a CPU"),
        Setting("expert.batch", batch, f"{n:,} training images: {steps} steps an epoch"),
        Setting("expert.epochs", epochs, f"{epochs * steps:,} steps of an expert"),
        Setting("budget.ipc", ipc, f"{classes} classes, {smallest} training images in the smallest"),
    ]
    if objective == "mtt":
        last = min(last, epochs - covers + 1)
        out.append(Setting("method.objective.expert_epochs", covers, f"{covers * steps} expert steps a segment"))
        out.append(Setting("method.objective.last", last, f"segments start in the first {last} of {epochs} epochs"))
    return out


def _size(survey: Survey) -> int:
    if survey.same and 8 <= survey.sides[0][0] <= LARGEST:
        return survey.sides[0][0]
    return max(side for side in SIDES if side <= max(NEAR * survey.side, SIDES[0]))
