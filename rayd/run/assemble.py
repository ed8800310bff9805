"""From a Run to the parts of its distillation. Everything that can be refused is refused here, before any work."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from rayd.config import MethodConfig, Run
from rayd.data.images import Splits
from rayd.data.load import load as load_data
from rayd.data.transform import Transform
from rayd.distill.contract import Codec, Inputs, Objective, Term
from rayd.distill.inputs import RunInputs
from rayd.errors import refuse
from rayd.experts.buffer import Buffer
from rayd.experts.trajectory import Segment
from rayd.nets.convnet import Net
from rayd.seeds import generator
from rayd.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunExperts:
    """The experts of a buffer that a run may draw from, by place; others may be added beside them at any time."""

    buffer: Buffer
    numbers: Sequence[int]

    @property
    def experts(self) -> int:
        return len(self.numbers)

    @cached_property
    def last_epoch(self) -> int:
        """The last epoch that every one of them has."""
        return min(max(self.buffer.epochs(self._place(expert))) for expert in range(self.experts))

    def row(self, expert: int, epoch: int) -> Tensor:
        return self.buffer.row(self._place(expert), epoch)

    def segment(self, expert: int, first: int, last: int) -> Segment:
        return self.buffer.segment(self._place(expert), first, last)

    def _place(self, expert: int) -> int:
        if not 0 <= expert < self.experts:
            raise refuse("expert", expert, f"0 to {self.experts - 1}: the run draws from {self.experts} experts")
        return self.buffer.numbers.index(self.numbers[expert])


@dataclass
class Assembled:
    """Everything a distillation is made of."""

    run: Run
    splits: Splits
    inputs: RunInputs
    codec_config: Any
    codec: Codec
    objective: Objective
    terms: list[Term]
    experts: Sequence[int] = ()
    """Numbers of the experts that it may draw from."""

    @property
    def device(self) -> torch.device:
        return self.inputs.device


def assemble(
    run: Run,
    device: torch.device,
    numbers: Callable[[Buffer], Sequence[int]] | None = None,
    splits: Splits | None = None,
) -> Assembled:
    """Load the data, fit the codec to the budget, build the parts, set the codec's start.

    `numbers`: of the experts to draw from; all of the run's own if not given. `splits`: the data, where they are loaded.
    """
    method = run.method
    splits, transform, net = surroundings(run, splits)
    spec = splits.train.spec
    budget = run.budget
    codec_config = method.codec.fit(budget, spec)
    log.info("%s", codec_config.describe(budget, spec))
    experts: RunExperts | None = None
    if method.reads_experts:
        buffer = Buffer(Store(run.experts_at), buffer_identity(run, splits, transform, net))
        experts = RunExperts(buffer, (numbers or partial(own_experts, run))(buffer))
    inputs = RunInputs(
        net,
        transform,
        splits.train,
        device,
        run.seed,
        precision=method.precision,
        compiled=method.compiled,
        buffer=experts,
        residence=run.scale.images,
        needs_real="real" in method.needs,
    )
    codec: Codec = codec_config.build(spec, generator(run.seed, "codec")).to(device)
    codec.enter(inputs.transform, budget)
    teacher = _teacher(inputs) if experts is not None else None
    confident = teacher if codec_config.start == "confident" else None
    codec.encode(inputs.start_images(run.seed, confident), generator(run.seed, "encode"))
    if codec.learns_labels and teacher is not None:
        codec.teach(teacher)
    drawn = experts.numbers if experts is not None else ()
    return Assembled(run, splits, inputs, codec_config, codec, *parts(method, inputs, codec), drawn)


def parts(method: MethodConfig, inputs: Inputs, codec: Codec) -> tuple[Objective, list[Term]]:
    """Objective and terms, on the inputs' device."""
    objective: Objective = method.objective.build(inputs).to(inputs.device)
    return objective, [config.build(inputs, codec).to(inputs.device) for config in method.terms]


def own_experts(run: Run, buffer: Buffer) -> list[int]:
    """Of the experts in a buffer, those that the run's plan names."""
    numbers = [number for number in buffer.numbers if number < run.expert.experts]
    if not numbers:
        raise refuse("expert.experts", run.expert.experts, f"more than {buffer.numbers[0]}, the first expert there is")
    return numbers


def surroundings(run: Run, splits: Splits | None = None) -> tuple[Splits, Transform, Net]:
    """Data, network space and network: what every stage of a run starts from."""
    splits = splits or load_data(run.data)
    return splits, Transform.fit(splits.train, run.transform), run.net.build(splits.train.spec)


def _teacher(inputs: RunInputs) -> Callable[[Tensor, Tensor], Tensor]:
    """All experts at their last epoch, as DATM's labels and start have it (Guo et al., 2024): predict(images, classes)."""

    @torch.no_grad()
    def predict(images_NCHW: Tensor, class_N: Tensor) -> Tensor:
        """Logits, averaged over the experts that are right on the image; over all of them where none is."""
        wanted_N = class_N.to(images_NCHW.device)
        everyone = torch.zeros(len(images_NCHW), inputs.spec.classes, device=images_NCHW.device)
        right, count_N1 = torch.zeros_like(everyone), everyone.new_zeros(len(images_NCHW), 1)
        for expert in range(inputs.experts):
            logits_NK = inputs.net(inputs.theta(expert, inputs.last_epoch).float(), images_NCHW)
            is_right_N1 = (logits_NK.argmax(1) == wanted_N)[:, None]
            everyone += logits_NK / inputs.experts
            right += logits_NK * is_right_N1
            count_N1 += is_right_N1
        return torch.where(count_N1 > 0, right / count_N1.clamp(min=1), everyone)

    return predict


def buffer_identity(run: Run, splits: Splits, transform: Transform, net: Net) -> dict[str, Any]:
    """What a buffer must agree in with a run that reads it."""
    train_set = splits.train
    own = [run.net.own, *(own for _, own in run.expert.augment.own)]
    code = sorted({one.source for one in own if one is not None})
    return {
        "data": {"name": train_set.name, "content": train_set.manifest["content"], "images": len(train_set)},
        "transform": {"kind": transform.kind, "fingerprint": transform.fingerprint()},
        "net": {"name": run.net.name, "norm": run.net.norm, "parameters": net.size, "fingerprint": net.fingerprint()},
        "expert": run.expert.recipe(),
        **({"methods": code[0]} if code else {}),
    }


def last_matched(run: Run) -> int | None:
    """The last expert epoch that the run's method can match; none where the method does not say."""
    last: int | None = getattr(run.method.objective, "last_epoch", None)
    return last
