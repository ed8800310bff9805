"""What is kept of a distillation while it runs and when it ends: metrics, checkpoints, validations, the artifact."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from rayd.artifact import write
from rayd.config import Run
from rayd.data.transform import Transform
from rayd.distill.budget import Stored, to_bytes
from rayd.distill.contract import Codec
from rayd.distill.loop import Distillation, Reduce, State, Step, identity
from rayd.distill.storage import through
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.score import evaluate
from rayd.machine import peak_memory, versions
from rayd.run.agreement import Agreement
from rayd.run.assemble import Assembled
from rayd.run.checkpoints import Checkpoints, MetricsFile
from rayd.run.identity import surroundings_identity
from rayd.schema import to_dict
from rayd.seeds import seed_of
from rayd.store import Lease, Store

log = logging.getLogger(__name__)

UNROUNDED = "unrounded.safetensors"
"""In the run's folder: an image of each class before its numbers were rounded, where storing rounds them."""
UNROUNDED_IMAGES = 10
VALIDATION_IMAGES = 5000
"""Looked at by each validation at most: the same ones, of every class alike. 1,000 alone leave +- 3 points (95 %)."""
VALIDATION_NETS = 2
VALIDATION_SHARE = 4
"""A validation trains its networks for a quarter of the recipe's steps."""


class Recorder:
    """Records metrics, writes checkpoints, validates, keeps the best codec and writes the artifact."""

    def __init__(
        self,
        assembled: Assembled,
        agreement: Agreement,
        checkpoints: Checkpoints,
        lease: Lease | None = None,
        notice: Callable[[], bool] = lambda: False,
    ) -> None:
        """Worker 0 writes. `lease`: this process's on the run's folder; on the fleet the driver holds it. `notice`:
        whether a machine of the run is about to be taken away."""
        self.assembled, self.agreement, self.checkpoints = assembled, agreement, checkpoints
        self.writes, self.lease, self.notice = agreement.rank == 0, lease, notice
        self.work = agreement.work = distillation(assembled, (agreement.rank, agreement.size), agreement)
        self.run: Run = assembled.run
        self.store = Store(self.run.out)
        self.metrics = MetricsFile(self.store)
        self.best: tuple[float, State] | None = None

    def resume(self) -> None:
        """Go on from the checkpoint that worker 0 finds to be the newest, or from its start."""
        newest = self.checkpoints.latest() if self.writes else None
        step = int(self.agreement.share([newest[0] if newest else 0])[0])
        if step == 0:
            self.agreement.share_state()
            return
        state = newest[1] if newest else self.checkpoints.at(step)
        best = {name.removeprefix("best/"): tensor for name, tensor in state.items() if name.startswith("best/")}
        if best:
            self.best = (float(best.pop("accuracy")), best)
        device = self.assembled.device
        self.work.load({name: tensor.to(device) for name, tensor in state.items() if not name.startswith("best/")})
        self.metrics.load(self.work.number)
        log.info("resumed at step %d of %d", self.work.number, self.run.method.steps)

    def after(self, step: Step) -> None:
        method = self.run.method
        line = {"step": step.number, "loss": step.value, "seconds": step.seconds, **step.metrics}
        if step.skipped:
            line["skipped"] = 1.0
            log.warning("step %d skipped: %s", step.number, step.skipped)
        last = step.number == method.steps
        if method.validate and (step.number % method.validate == 0 or last):
            line["val"] = self._validate()
        line["memory"] = float(peak_memory(self.assembled.device.type))
        self.metrics.lines.append(line)
        if step.number % method.checkpoint == 0 and not last:
            state = self.work.checkpoint()
            if self.writes:
                self._save(step.number, state)
        elif self.writes and not last and self.notice():
            log.warning("a machine is about to be taken away: checkpoint of step %d", step.number)
            self._save(step.number, self.work.state())

    def _save(self, step: int, state: State) -> None:
        if self.lease:
            self.lease.check()
        if self.best is not None:
            accuracy, codec = self.best
            state = state | {"best/accuracy": torch.tensor(accuracy, dtype=torch.float64)}
            state |= {f"best/{name}": tensor for name, tensor in codec.items()}
        self.metrics.save()
        self.checkpoints.save(step, state)
        inputs = self.assembled.inputs
        self.store.write("preview.png", write.preview(self.work.averaged(), inputs.transform, inputs.spec))

    def _validate(self) -> float:
        """Accuracy on the validation split. Each worker trains its share of the networks: none waits for all of them."""
        codec = self.work.averaged()
        shares = range(self.agreement.rank, VALIDATION_NETS, self.agreement.size)
        mine = dict(zip(shares, validate(self.assembled, write.as_stored(codec), shares), strict=True))
        accuracy = fmean(self.agreement.total([mine.get(number, 0.0) for number in range(VALIDATION_NETS)]))
        if self.best is None or accuracy > self.best[0]:
            self.best = (accuracy, codec.state())
        return accuracy

    def finish(self, more: Mapping[str, Any]) -> None:
        """The artifact, and no checkpoints any more. `more`: of the claim."""
        if not self.writes:
            return
        if self.lease:
            self.lease.check()
        codec = self.work.averaged()
        method, lines = self.run.method, self.metrics.lines
        if method.select == "best_val" and self.best is not None:
            codec.load(self.best[1])
        self.metrics.save()
        timing = {
            "distill_s": sum(line["seconds"] for line in lines),
            "distill_peak": max((line["memory"] for line in lines), default=0.0),
            "steps": self.work.number,
        }
        record = self.work.record
        claim: dict[str, Any] = {"select": method.select, "skipped": record.skipped, "rollbacks": record.rolled}
        if self.best is not None:
            claim["best_val"] = self.best[0]
        write_artifact(self.assembled, codec, timing, {**claim, **more})
        sample = unrounded(codec, self.assembled.inputs.transform)
        if sample:
            self.store.write(UNROUNDED, to_bytes(sample))
        self.checkpoints.clear()


@torch.no_grad()
def unrounded(codec: Codec, transform: Transform) -> dict[str, Tensor]:
    """An image of each class, as pixels, with the numbers as they were learned; none where storing changes nothing."""
    firsts = [codec.of_class(c)[:1] for c in range(min(codec.spec.classes, UNROUNDED_IMAGES))]
    index = torch.cat(firsts).cpu()
    before = codec.decode(index)[0].float()
    with through(codec, codec.quantise):
        same = torch.equal(codec.decode(index)[0].float(), before)
    return {} if same else {"index": index, "pixels": transform.inverse(before).cpu()}


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
        through=method.through,
        share=share,
        reduce=reduce,
    )


def validate(assembled: Assembled, codec: Codec, numbers: Sequence[int]) -> list[float]:
    """Accuracy on the validation split of the networks with these numbers, trained for a part of the recipe."""
    if not numbers:
        return []
    run, recipe = assembled.run, assembled.run.recipe
    teachers = [number.tensor for number in assembled.objective.stored().values() if number.role == "teacher"]
    scores = evaluate(
        recipe.shortened(ImageSet.of(codec).length(recipe).steps // VALIDATION_SHARE),
        assembled.inputs.net,
        codec,
        assembled.splits.val.sample(VALIDATION_IMAGES, run.seed),
        assembled.inputs.transform,
        [seed_of(run.seed, "validate", i) for i in numbers],
        device=assembled.device,
        step_size=assembled.objective.step_size(),
        teacher=(assembled.inputs.net, teachers[0].flatten()) if teachers else None,
        compile=assembled.inputs.compiled,
    )
    return [score.accuracy for score in scores]


def stored_numbers(assembled: Assembled, codec: Codec) -> dict[str, Stored]:
    """All that an artifact must carry, of every part."""
    stored = dict(codec.stored())
    for part in (assembled.objective, *assembled.terms):
        stored |= part.stored()
    return stored


def write_artifact(assembled: Assembled, codec: Codec, timing: Mapping[str, Any], claim: Mapping[str, Any]) -> None:
    """The artifact of every part's stored numbers, in the run's folder. Refused if it came out over budget."""
    run, spec = assembled.run, assembled.inputs.spec
    stored = stored_numbers(assembled, codec)
    provenance = write.Provenance(
        codec={"name": run.method.part_names[0], **to_dict(assembled.codec_config)},
        spec=spec,
        classes=assembled.splits.train.classes,
        sentence=run.method.sentence,
        config=to_dict(run),
        fingerprint=run.fingerprint(),
        identity=surroundings_identity(run, assembled.splits, assembled.device) | {"experts": list(assembled.experts)},
        data=assembled.splits.train.facts(assembled.inputs.transform.kind == "normalise"),
        seeds={"run": run.seed},
        claim=claim,
        versions=versions(assembled.device),
    )
    room, transform = run.budget.bytes or assembled.codec_config.filled(run.budget, spec), assembled.inputs.transform
    most, unit = (room, "bytes") if room is not None else (run.budget.limit(spec), "floats")
    write.save(Store(run.at("artifact")), provenance, codec, stored, transform, timing, most, unit)
