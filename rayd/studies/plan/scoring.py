"""What a score costs: epochs, steps, networks and floating-point operations, from the recipe and the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from rayd.config import Run
from rayd.data.images import Spec
from rayd.evaluate.recipe import RecipeConfig
from rayd.evaluate.row import LABEL_BYTES, RowName
from rayd.nets.convnet import Net
from rayd.run.rows import CONTROLS, FEATURE_STEPS
from rayd.studies.plan.sizes import LedgerSize

TRAINING = 3
"""Operations of a training step beside those of a forward pass: forward, gradient of activations, of parameters."""


@dataclass(frozen=True)
class Scoring:
    """The training of all networks behind a table of scores. The test itself is left out."""

    images: int
    """That the set decodes to."""
    epochs: float
    """Of one network: as the recipe counts them, else passes over the decoded images."""
    steps: int
    batch: int
    networks: int
    """Trained on the set: as decoded, in 8 bits, under hard labels, and of other architectures."""
    controls: int
    """Trained on real images and on the start."""
    full_epochs: float
    """Of the control `full`: passes over the training set."""
    control_images: int
    """Images that the networks of controls go through, and the network whose features herding takes."""
    operations: float
    """Floating-point, of all networks, as if each had the first architecture."""

    @classmethod
    def of(cls, run: Run, spec: Spec, ledger: LedgerSize, train: int) -> Scoring:
        recipe = run.recipe
        stored = max(1, round(ledger.floats / spec.floats))
        raw = min(max(ledger.bytes // (spec.floats + LABEL_BYTES), spec.classes), train)
        start = (ledger.images, stored)
        sizes = {"floats": (stored, stored), "raw": (raw, raw), "jpeg": (raw, raw)}
        cross = max(0, len(recipe.nets) - 1)
        labelled = "labels" in ledger.by_role or recipe.labels == "teacher"
        views = [(ledger.images, stored)] * ((3 if labelled else 2) + cross)
        controls = [
            start if name == "start" else sizes[RowName.parse(name).budget] for name in CONTROLS if name != "full"
        ]
        controls += [sizes["floats"]] * ((2 if recipe.augment else 0) + cross)

        def seen(decoded: int, stored: int, recipe: RecipeConfig = recipe) -> int:
            """Images that one network goes through."""
            return recipe.length(decoded, stored).steps * min(recipe.batch, decoded)

        length = recipe.length(ledger.images, stored)
        set_images = recipe.seeds * sum(seen(*size) for size in views)
        control_images = recipe.seeds * (sum(seen(*size) for size in controls) + seen(train, train, recipe.of_full))
        control_images += min(FEATURE_STEPS, recipe.length(train, train).steps) * min(recipe.batch, train)
        net = (recipe.nets or (run.net,))[0].build(spec)
        return cls(
            images=ledger.images,
            epochs=recipe.epochs or seen(*views[0]) / ledger.images,
            steps=length.steps,
            batch=min(recipe.batch, ledger.images),
            networks=recipe.seeds * len(views),
            controls=recipe.seeds * (len(controls) + 1),
            full_epochs=seen(train, train, recipe.of_full) / train,
            control_images=control_images,
            operations=float(TRAINING * (set_images + control_images) * forward_operations(net)),
        )

    def text(self) -> str:
        each = f"{self.epochs:,.4g} epochs = {self.steps:,} steps of {self.batch} a network"
        full = f"`full` {self.full_epochs:,.4g} epochs"
        rest = f"{self.networks} networks and {self.controls} of controls ({full})"
        return f"{each}, {rest}: {self.operations / 1e15:.3g} PFLOP"


def forward_operations(net: Net) -> int:
    """Of one image: two for each multiplication and addition of its convolutions and matrix products."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net(torch.zeros(net.size), torch.zeros(1, *net.spec.shape))
    return int(counter.get_total_flops())
