"""What a score costs: epochs, steps, networks and floating-point operations, from the recipe and the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from rayd.config import Run
from rayd.data.images import Spec
from rayd.nets.convnet import Net
from rayd.run.rows import CONTROLS, FEATURE_STEPS
from rayd.studies.plan.sizes import LedgerSize

TRAINING = 3
"""Operations of a training step beside those of a forward pass: forward, gradient of activations, of parameters."""


@dataclass(frozen=True)
class Scoring:
    """The training of all networks behind a table of scores. The test itself is left out."""

    epochs: float
    """Of one network on the decoded set."""
    steps: int
    batch: int
    networks: int
    """Trained on the set: as decoded, in 8 bits, under hard labels, and of other architectures."""
    controls: float
    """Trained on real images; the features of herding count by their share of the steps."""
    operations: float
    """Floating-point, of one network of the run's first architecture."""

    @classmethod
    def of(cls, run: Run, spec: Spec, ledger: LedgerSize, train: int) -> Scoring:
        recipe = run.recipe
        batch = min(recipe.batch, ledger.images)
        steps = recipe.length(ledger.images, round(ledger.floats / spec.floats)).steps
        cross = max(0, len(recipe.nets) - 1)
        views = 3 if "labels" in ledger.by_role or recipe.labels == "teacher" else 2
        others = len(CONTROLS) + (2 if recipe.augment else 0) + cross
        features = min(FEATURE_STEPS, steps) / steps
        net = (recipe.nets or (run.net,))[0].build(spec)
        return cls(
            epochs=steps * batch / ledger.images,
            steps=steps,
            batch=batch,
            networks=recipe.seeds * (views + cross),
            controls=recipe.seeds * others + features,
            operations=float(TRAINING * steps * batch * forward_operations(net)),
        )

    @property
    def total(self) -> float:
        """Operations of the whole table."""
        return (self.networks + self.controls) * self.operations

    def text(self) -> str:
        one = f"{self.epochs:,.4g} epochs = {self.steps:,} steps of {self.batch} a network"
        return f"{one}, {self.networks} networks and {self.controls:.3g} of controls: {self.total / 1e15:.3g} PFLOP"


def forward_operations(net: Net) -> int:
    """Of one image: two for each multiplication and addition of its convolutions and matrix products."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net(torch.zeros(net.size), torch.zeros(1, *net.spec.shape))
    return int(counter.get_total_flops())
