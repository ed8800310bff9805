"""Distilled pairs: a codec and an objective under the same loop as images.

Shapes: M pairs, d inputs, Q starts, P parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.distill.budget import Stored
from rayd.distill.contract import Codec, Item, Match, Objective, Player
from rayd.distill.loop import Distillation, OptimiserConfig
from rayd.methods.dc import distance, parameter_gradient
from rayd.seeds import generator, seed_of
from rayd.studies.theory.task import Student, Task

START = 0.4
"""Length of the vectors before the first step."""


@dataclass
class TheoryInputs:
    """Inputs without images: a student, and the gradients of the training set on a pool of its starts."""

    task: Task
    student: Student
    starts_QP: Tensor
    gradients_QP: Tensor
    seed: int

    def __post_init__(self) -> None:
        self.device = torch.device("cpu")
        self.transform = Transform("none", torch.zeros(1), torch.ones(1))

    @classmethod
    def build(cls, task: Task, student: Student, x_Nd: Tensor, y_N: Tensor, pool: int) -> TheoryInputs:
        starts = [student.init(generator(task.seed, "student", q)) for q in range(pool)]
        gradients = [parameter_gradient(student.loss, theta_P, x_Nd, y_N) for theta_P in starts]
        return cls(task, student, torch.stack(starts), torch.stack(gradients), task.seed)


class Pairs(Codec):
    """M vectors with a number each. They start small: of a large start the random directions would stay."""

    def __init__(self, pairs: int, d: int, seed: int) -> None:
        super().__init__()
        rng = generator(seed, "pairs", pairs)
        self.spec, self.axes = Spec((d,), 1), {"pair": pairs}
        self.x_Md = nn.Parameter(START * torch.randn(pairs, d, generator=rng) / math.sqrt(d))
        self.y_M = nn.Parameter(torch.ones(pairs))

    def __len__(self) -> int:
        return len(self.y_M)

    def classes(self) -> Tensor:
        return torch.zeros(len(self), dtype=torch.int64)

    def decode(self, index_N: Tensor) -> tuple[Tensor, Tensor]:
        return self.x_Md[index_N], self.y_M[index_N]

    def players(self) -> list[Player]:
        return [Player("pairs", (self.x_Md, self.y_M))]

    def stored(self) -> dict[str, Stored]:
        return {"x": Stored(self.x_Md, "pixels"), "y": Stored(self.y_M, "labels")}


class OneStep(Objective):
    """Squared distance of the pairs' gradient on one start from the training set's, relative to its size."""

    uses_labels: ClassVar[bool] = True

    def __init__(self, inputs: TheoryInputs) -> None:
        super().__init__()
        self.inputs = inputs

    def plan(self, step: int) -> list[Item]:
        start = step % len(self.inputs.starts_QP)
        return [Item(step, 0, seed_of(self.inputs.seed, "item", step, 0), {"start": start})]

    def forward(self, codec: Codec, item: Item, data: Any) -> Match:
        student, q = self.inputs.student, item.what["start"]
        x_Md, y_M = codec.decode(torch.arange(len(codec)))
        real_P = self.inputs.gradients_QP[q]
        ours_P = parameter_gradient(student.loss, self.inputs.starts_QP[q], x_Md, y_M)
        return Match(distance(real_P, ours_P, student.flat, "squared") / real_P.square().sum())


def distilled(inputs: TheoryInputs, pairs: int, steps: int, lr: float) -> tuple[Pairs, float]:
    """The pairs after all steps, and the last value of the loss averaged over the pool."""
    codec = Pairs(pairs, inputs.student.d, inputs.seed)
    optimiser = OptimiserConfig(name="adam", lr=lr / math.sqrt(inputs.student.d), momentum=0.9, decay="cosine")
    run = Distillation(codec, OneStep(inputs), [], steps=steps, optimiser=optimiser, inputs=inputs)  # type: ignore[arg-type]
    values = [step.value for step in run.run()]
    tail = values[-len(inputs.starts_QP) :]
    return codec, math.fsum(tail) / len(tail)
