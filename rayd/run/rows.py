"""Rows of the score table and how each is computed.

A task scores one row with one architecture and some seeds. The same function runs in this process and on Ray.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from rayd.artifact.load import Artifact, load, quantise
from rayd.artifact.write import as_stored
from rayd.config import Run
from rayd.data.images import Images, Splits
from rayd.data.load import load as load_data
from rayd.data.sources.decode import decompressed, jpeg
from rayd.errors import Failed, Refused, Transient, refuse
from rayd.evaluate import coreset
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.row import LABEL_BYTES, RowName, image_bytes
from rayd.evaluate.score import Score, embedder, evaluate
from rayd.machine import device_for
from rayd.nets.convnet import Net
from rayd.run.assemble import assemble
from rayd.run.compressed import strongest
from rayd.run.recorder import VALIDATION_IMAGES
from rayd.run.scores import CONTROL_SEED, ControlScores, KeptScores, room_of
from rayd.schema import parse, to_dict
from rayd.seeds import seed_of
from rayd.store import Store

log = logging.getLogger(__name__)

CONTROLS = (
    "random@floats", "herding@floats", "random@raw", "herding@raw", "random@jpeg", "herding@jpeg", "start", "full",
)  # fmt: skip
FEATURE_STEPS = 300
"""Of the network whose features herding and k-centre measure distances in."""
JPEG_SHARE, JPEG_LEAST = 10, 300
"""A JPEG file takes at least a tenth of its pixels' bytes, and its header alone 300 bytes."""

Outcome = list[Score] | str
"""Scores of a task, or why its row is left out."""


@dataclass(frozen=True)
class RowTask:
    row: RowName
    net: int
    """Position in the recipe's networks."""
    seeds: tuple[int, ...]

    def parts(self, gpus: float) -> list[RowTask]:
        """On a GPU one for all seeds, whose networks train side by side; else one a seed."""
        return [self] if gpus > 0 else [replace(self, seeds=(seed,)) for seed in self.seeds]


class Scorer:
    """What the tasks of one artifact share, built once in a process."""

    def __init__(self, run: Run, artifact: Artifact, splits: Splits | None = None, store: Store | None = None) -> None:
        self.run, self.recipe = run, run.recipe
        self.splits = splits or load_data(run.data)
        self.device = device_for(run.scale.gpus)
        self.kept = KeptScores(store, run, artifact, self.splits) if store is not None else None
        self.shared = ControlScores(run, artifact, self.splits) if store is not None else None
        self._orders: dict[tuple[str, int], list[Tensor]] = {}
        self._best: dict[str, ImageSet] = {}
        if self.train.spec != artifact.spec or self.train.classes != artifact.classes:
            raise refuse("data", f"{self.train.name} {self.train.spec}", f"the artifact's {artifact.spec} and classes")
        self.artifact = artifact.on(self.train)
        self.transform = self.artifact.transform.to(self.device)

    @classmethod
    def of(cls, run: Run, uri: str, artifact: Artifact | None = None) -> Scorer:
        """`artifact`: the one at `uri`, if it is loaded already."""
        return cls(run, artifact or load(uri, run.methods), store=Store(uri))

    @property
    def train(self) -> Images:
        return self.splits.train

    @cached_property
    def nets(self) -> list[Net]:
        return [config.build(self.artifact.spec) for config in self.recipe.nets or (self.run.net,)]

    def found(self, task: RowTask) -> list[Score]:
        """Scores that are there: of an evaluation that was interrupted, or of controls that another run scored."""
        kept = self._keeper(task.row)
        scores = [kept.find(task.row, task.net, seed) for seed in task.seeds] if kept else []
        return [score for score in scores if score is not None]

    def _keeper(self, row: RowName) -> KeptScores | ControlScores | None:
        return self.shared if self.shared and self.shared.holds(row) else self.kept

    def answer(self, task: RowTask) -> list[Score]:
        """Scores on the test set. Each is kept as it comes, and taken from there if it is there."""
        row, net, kept = task.row, task.net, self._keeper(task.row)
        scores = {score.seed: score for score in self.found(task)}
        missing = [seed for seed in task.seeds if seed not in scores]
        source: ImageSet | None = None
        for seeds in self._groups(row, missing):
            if source is None or row.kind == "random":  # of which each network draws its own images
                source = self.source(row, seeds[0]).resident(self.device)
            for score in self._evaluate(task, source, seeds):
                scores[score.seed] = kept.keep(row, net, score) if kept else score
        return [scores[seed] for seed in task.seeds]

    def _groups(self, row: RowName, seeds: list[int]) -> list[list[int]]:
        """Networks that are trained at once: on a GPU all that see the same images."""
        if self.device.type == "cuda" and row.kind != "random" and seeds:
            return [seeds]
        return [[seed] for seed in seeds]

    def _evaluate(self, task: RowTask, source: ImageSet, seeds: list[int]) -> list[Score]:
        asked = self.recipe.of_full if task.row.kind == "full" else self.recipe
        recipe = {
            "": asked, "hard": replace(asked, labels="hard"),
            "bare": replace(asked, augment=None, cutmix=0.0, mixup=0.0),
        }[task.row.way]  # fmt: skip
        return evaluate(
            recipe, self.nets[task.net], source, self._test, None, seeds,
            device=self.device, step_size=self.artifact.step_size, teacher=self._teacher,
        )  # fmt: skip

    @cached_property
    def _test(self) -> ImageSet:
        return ImageSet.of(self.splits.test, self.transform).resident(self.device)

    def source(self, row: RowName, seed: int) -> ImageSet:
        """What the networks of a row are trained on."""
        if row.kind == "distilled":
            return ImageSet.of(self._codec)
        if row.kind == "distilled-8bit":
            return self._rounded()
        if row.kind == "full":
            return ImageSet.of(self.train, self.transform)
        if row.kind == "start":
            experts = self.artifact.card.get("identity", {}).get("experts")
            codec = assemble(self.run, self.device, (lambda buffer: experts) if experts else None).codec
            return ImageSet.of(as_stored(codec))
        control = RowName.control(str(replace(row, way="")), self.run.own.controls)
        if control.budget == "best":
            return self._strongest(control.kind)
        return ImageSet.of(self.real(control, seed), self.transform)

    def _strongest(self, kind: str) -> ImageSet:
        """Chosen once for all networks."""
        if kind not in self._best:
            val = ImageSet.of(self.splits.val.sample(VALIDATION_IMAGES, CONTROL_SEED), self.transform)
            seed = seed_of(CONTROL_SEED, "compressed")

            def accuracy(source: ImageSet, part: int) -> float:
                recipe = self.recipe.shortened(max(1, source.length(self.recipe).steps // part))
                return evaluate(recipe, self.nets[0], source, val, None, [seed], device=self.device)[0].accuracy

            features = None if kind == "random" else self._features
            order = coreset.orders(kind, self.train, len(self.train), CONTROL_SEED, features, self.run.own.controls)
            room = room_of(self.run, self.artifact)
            self._best[kind] = strongest(self.train, order, room, self.transform, accuracy)
        return self._best[kind]

    def real(self, row: RowName, seed: int) -> Images:
        """The real images of a control."""
        order = self._order(row.kind, seed if row.kind == "random" else CONTROL_SEED)
        floats, size, spec = self.artifact.ledger["floats"], room_of(self.run, self.artifact), self.artifact.spec
        if row.budget == "jpeg":
            return self._as_jpeg(coreset.in_turn(order, len(self.train)), size)
        return self.train.select(coreset.in_turn(order, row.images(floats, size, spec, len(self.train))))

    def _order(self, kind: str, seed: int) -> list[Tensor]:
        if (kind, seed) not in self._orders:
            most = len(self.train) if kind == "random" else self._most()
            features = None if kind == "random" else self._features
            self._orders[kind, seed] = coreset.orders(kind, self.train, most, seed, features, self.run.own.controls)
        return self._orders[kind, seed]

    def _most(self) -> int:
        """Images of a class that the largest budget, bytes of JPEG files, may ask for."""
        spec, size = self.artifact.spec, room_of(self.run, self.artifact)
        raw, compressed = size // image_bytes(spec), size // max(spec.floats // JPEG_SHARE, JPEG_LEAST)
        return max(raw, compressed) // spec.classes + 2

    @cached_property
    def _features(self) -> coreset.Features:
        """Embeddings by a network trained on the training set."""
        net, source = self.nets[0], ImageSet.of(self.train, self.transform)
        recipe = self.recipe.shortened(min(FEATURE_STEPS, source.length(self.recipe).steps))
        return embedder(recipe, net, source, seed_of(CONTROL_SEED, "features"), self.device)

    @cached_property
    def _codec(self) -> Any:
        return copy.deepcopy(self.artifact.codec).to(self.device)

    def _rounded(self) -> ImageSet:
        """Rounded to 8 bits as they are decoded."""
        decoded, inverse = ImageSet.of(self._codec), self.transform.inverse

        def decode(index_N: Tensor) -> tuple[Tensor, Tensor]:
            images, targets = decoded.decode(index_N)
            return self.transform(quantise(inverse(images.float()))), targets

        return replace(decoded, decode=decode)

    @cached_property
    def _teacher(self) -> tuple[Net, Tensor] | None:
        """The network whose parameters the artifact carries, where its recipe asks one."""
        theta = self.artifact.teacher
        return None if theta is None else (self.run.net.build(self.artifact.spec), theta.flatten())

    def _as_jpeg(self, order: Tensor, room: int) -> Images:
        """As many of them, in this order, as fit; as they look once compressed."""
        decoded: list[Tensor] = []
        total = 0
        for index in order:
            data = jpeg(self.train.pixels_NCHW[index])
            total += len(data) + LABEL_BYTES
            if total > room and len(decoded) >= self.artifact.spec.classes:
                break
            decoded.append(decompressed(data))
        return replace(self.train.select(order[: len(decoded)]), pixels_NCHW=torch.stack(decoded))


def rows_of(run: Run, artifact: Artifact, controls: Sequence[str]) -> list[RowName]:
    soft = artifact.has_soft_labels or run.recipe.labels == "teacher"
    hard = ["distilled/hard"] if soft else []
    bare = ["distilled/bare", "random@floats/bare"] if "random@floats" in controls and run.recipe.augment else []
    return [RowName.parse(name) for name in ("distilled", "distilled-8bit", *hard, *controls, *bare)]


def row_tasks(run: Run, artifact: Artifact, controls: Sequence[str]) -> list[RowTask]:
    """Every row under the first network; the set itself and random images of its floats under the others.

    Controls have the same networks whatever the run's seed, so that the next one finds their scores.
    """
    own, shared = (
        tuple(seed_of(seed, "score", i) for i in range(run.recipe.seeds)) for seed in (run.seed, CONTROL_SEED)
    )
    cross = [RowName("distilled"), *([RowName("random", "floats")] if controls else [])]
    plan = [(row, 0) for row in rows_of(run, artifact, controls)]
    plan += [(row, net) for net in range(1, len(run.recipe.nets)) for row in cross]
    return [RowTask(row, net, shared if row.is_coreset or row.kind == "full" else own) for row, net in plan]


def attempt(answer: Callable[[RowTask], list[Score]], task: RowTask) -> Outcome:
    """A control that cannot be computed here is left out with its reason, and the others go on."""
    if task.row.is_distilled:
        return answer(task)
    try:
        return answer(task)
    except Transient:
        raise
    except (Refused, Failed) as error:
        log.warning("control %s left out: %s", task.row, error)
        return str(error)


@cache
def _scorer(plain: str, uri: str) -> Scorer:
    """Built once in a worker process."""
    return Scorer.of(parse(Run, json.loads(plain)), uri)


def score_task(run: Run, uri: str, task: RowTask) -> Outcome:
    """A task in a process of the fleet."""
    return attempt(_scorer(json.dumps(to_dict(run)), uri).answer, task)
