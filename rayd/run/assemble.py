"""From a Run to the parts of its distillation, and from its codec to an artifact."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rayd.artifact import write
from rayd.config import Run
from rayd.data.images import Splits
from rayd.data.load import load as load_data
from rayd.data.transform import Transform
from rayd.distill.budget import Ledger, Stored
from rayd.distill.contract import Codec, Objective, Term
from rayd.distill.inputs import ResidentInputs
from rayd.distill.loop import Distillation, Reduce
from rayd.errors import refuse
from rayd.evaluate.score import evaluate
from rayd.experts.buffer import Buffer
from rayd.nets.convnet import Net
from rayd.schema import to_dict
from rayd.seeds import generator, seed_of
from rayd.store import Store

log = logging.getLogger(__name__)

FROM_BUFFER = frozenset({"segment", "pool", "teacher"})
CHECKED = 1000
"""Validation images looked at while a run is under way."""


@dataclass
class Assembled:
    """Everything a distillation is made of."""

    run: Run
    splits: Splits
    inputs: ResidentInputs
    codec_config: Any
    codec: Codec
    objective: Objective
    terms: list[Term]

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    def distillation(self, share: tuple[int, int], reduce: Reduce) -> Distillation:
        method = self.run.method
        return Distillation(
            self.codec,
            self.objective,
            self.terms,
            steps=method.steps,
            optimiser=method.optimiser,
            inputs=self.inputs,
            guard=method.guard,
            ema=method.ema,
            share=share,
            reduce=reduce,
        )

    def stored(self, codec: Codec) -> dict[str, Stored]:
        """All that an artifact must carry, of every part."""
        out = dict(codec.stored())
        for part in (self.objective, *self.terms):
            out |= part.stored()
        return out

    def preview(self, codec: Codec) -> bytes:
        return write.preview(codec, self.inputs.transform, self.inputs.spec)

    def validate(self, codec: Codec) -> float:
        """Mean accuracy of two short trainings on the split carved out of training."""
        recipe = replace(self.run.recipe, steps=max(1, self.run.recipe.steps // 4))
        val = self.splits.val.select(torch.arange(min(CHECKED, len(self.splits.val))))
        seeds = [seed_of(self.run.seed, "validate", i) for i in range(2)]
        scores = evaluate(
            recipe,
            self.inputs.net,
            codec,
            val,
            self.inputs.transform,
            seeds,
            device=self.device,
            step_size=self.step_size(),
            compile=self.inputs.compiled,
        )
        return sum(score.accuracy for score in scores) / len(scores)

    def step_size(self) -> float | None:
        rate = getattr(self.objective, "step_size", None)
        return float(rate()) if callable(rate) else None

    def write(self, codec: Codec, store: Store, timing: Mapping[str, Any], claim: Mapping[str, Any]) -> None:
        """The artifact, as stored and no better: its card is written last. Refused if it came out over budget."""
        run, spec = self.run, self.inputs.spec
        stored = self.stored(codec)
        self._within_budget(Ledger.of(stored))
        made = write.files(
            write.Provenance(
                codec={"name": run.method.part_names[0], **to_dict(self.codec_config)},
                spec=spec,
                classes=self.splits.train.classes,
                sentence=run.method.sentence,
                config=to_dict(run),
                fingerprint=run.fingerprint(),
                data=self.splits.train.manifest,
                seeds={"run": run.seed},
                claim=claim,
            ),
            codec,
            stored,
            self.inputs.transform,
            timing,
        )
        for name, data in made.items():
            store.write(f"artifact/{name}", data)

    def _within_budget(self, ledger: Ledger) -> None:
        budget, codec = self.run.budget.build(), self.codec_config
        limit = budget.limit(self.inputs.spec, codec.storage)
        if ledger.floats > limit:
            raise refuse(
                "budget", budget, f"at least the {ledger.floats} floats that {self.run.method.sentence} stores"
            )


def assemble(run: Run, device: torch.device) -> Assembled:
    """Load, fit, build, start. Everything that can be refused is refused here, before any work."""
    method = run.method
    splits, transform, net = surroundings(run)
    spec = splits.train.spec
    budget = run.budget.build()
    codec_config = method.codec.fit(budget, spec)
    log.info("%s", codec_config.describe(budget, spec))
    buffer = None
    if FROM_BUFFER & set(method.needs) or codec_config.labels == "soft" or codec_config.start == "confident":
        buffer = Buffer(Store(run.experts_at), buffer_identity(run, splits, transform, net))
    inputs = ResidentInputs(
        net,
        transform,
        splits.train,
        device,
        run.seed,
        precision=method.precision,
        compiled=method.compiled,
        buffer=buffer,
    )
    if device.type == "cuda" and method.precision == "tf32":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    codec: Codec = codec_config.build(spec, generator(run.seed, "codec")).to(device)
    teacher = _teacher(inputs) if buffer is not None else None
    right = teacher if codec_config.start == "confident" else None
    codec.encode(inputs.start_images(run.seed, right), generator(run.seed, "encode"))
    if codec.learns_labels and teacher is not None:
        codec.teach(teacher)
    objective = method.objective.build(inputs)
    terms = [config.build(inputs, codec).to(device) for config in method.terms]
    return Assembled(run, splits, inputs, codec_config, codec, objective.to(device), terms)


def surroundings(run: Run) -> tuple[Splits, Transform, Net]:
    """Data, network space and network: what every stage of a run starts from."""
    splits = load_data(run.data)
    return splits, Transform.fit(splits.train, run.transform), run.net.build(splits.train.spec)


def _teacher(inputs: ResidentInputs) -> Callable[[Tensor], Tensor]:
    """The first expert at its last epoch: starts DATM's images and labels."""
    theta = inputs.theta(0, inputs.last_epoch).float()

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        return inputs.net(theta, images)

    return predict


def buffer_identity(run: Run, splits: Splits, transform: Transform, net: Net) -> dict[str, Any]:
    """What a buffer must agree in with a run that reads it."""
    train_set = splits.train
    return {
        "data": {"name": train_set.name, "content": train_set.manifest["content"], "images": len(train_set)},
        "transform": {"kind": transform.kind, "fingerprint": transform.fingerprint()},
        "net": {"name": run.net.name, "norm": run.net.norm, "parameters": net.size, "fingerprint": net.fingerprint()},
        "expert": run.expert.recipe(),
    }


def last_matched(run: Run) -> int | None:
    """The last expert epoch that the run's method can match; none where the method does not say."""
    last: int | None = getattr(run.method.objective, "last_epoch", None)
    return last


def device_of(run: Run) -> torch.device:
    """inline: the GPU of this machine where there is one; on the fleet: what was asked for."""
    gpu = torch.cuda.is_available() if run.scale.name == "inline" else run.scale.gpus > 0
    return torch.device("cuda" if gpu else "cpu")
