"""From a Run to the parts of its distillation. Everything that can be refused is refused here, before any work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rayd.config import Run
from rayd.data.images import Splits
from rayd.data.load import load as load_data
from rayd.data.transform import Transform
from rayd.distill.contract import Codec, Objective, Term
from rayd.distill.inputs import ResidentInputs
from rayd.distill.loop import Distillation, Reduce, identity
from rayd.experts.buffer import Buffer
from rayd.nets.convnet import Net
from rayd.seeds import generator
from rayd.store import Store

log = logging.getLogger(__name__)


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


def assemble(run: Run, device: torch.device) -> Assembled:
    """Load the data, fit the codec to the budget, build the parts, set the codec's start."""
    method = run.method
    splits, transform, net = surroundings(run)
    spec = splits.train.spec
    budget = run.budget.build()
    codec_config = method.codec.fit(budget, spec)
    log.info("%s", codec_config.describe(budget, spec))
    buffer = None
    if method.reads_experts:
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
    confident = teacher if codec_config.start == "confident" else None
    codec.encode(inputs.start_images(run.seed, confident), generator(run.seed, "encode"))
    if codec.learns_labels and teacher is not None:
        codec.teach(teacher)
    objective = method.objective.build(inputs)
    terms = [config.build(inputs, codec).to(device) for config in method.terms]
    return Assembled(run, splits, inputs, codec_config, codec, objective.to(device), terms)


def distillation(assembled: Assembled, share: tuple[int, int] = (0, 1), reduce: Reduce = identity) -> Distillation:
    """The loop over these parts, for one worker's share of the items."""
    method = assembled.run.method
    return Distillation(
        assembled.codec,
        assembled.objective,
        assembled.terms,
        steps=method.steps,
        optimiser=method.optimiser,
        inputs=assembled.inputs,
        guard=method.guard,
        ema=method.ema,
        share=share,
        reduce=reduce,
    )


def surroundings(run: Run) -> tuple[Splits, Transform, Net]:
    """Data, network space and network: what every stage of a run starts from."""
    splits = load_data(run.data)
    return splits, Transform.fit(splits.train, run.transform), run.net.build(splits.train.spec)


def _teacher(inputs: ResidentInputs) -> Callable[[Tensor, Tensor], Tensor]:
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
