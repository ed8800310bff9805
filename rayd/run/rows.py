"""What is scored, and beside what: the synthetic set, and controls of the same size under the same recipe.

A row says what the networks are trained on:

    distilled            as decoded                       distilled-8bit     rounded and clipped to 8 bits
    start                the codec before any step        full               the whole training set
    KIND@floats          as many real images as the artifact has floats for
    KIND@raw             as many 8-bit images, one byte a label, as the artifact's file has bytes
    KIND@jpeg            as many JPEG files (quality 75), decoded again, as the artifact's file has bytes

A row may end in /hard (its labels replaced by classes) or /bare (no augmentation): what LRS and ARS rest on. KIND is
random (every network its own draw), herding or kcentre (in the features of a network trained on the real set).

An ask is one row, one architecture, some seeds: it is answered alike in this process and in a task of the fleet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

import rayd
from rayd.artifact.load import Artifact
from rayd.config import Run
from rayd.data.images import Images, Splits
from rayd.data.load import load as load_data
from rayd.data.sources.decode import jpeg, unjpeg
from rayd.errors import Failed, Refused, refuse
from rayd.evaluate import coreset
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.score import Score, evaluate, trained
from rayd.nets.convnet import Net
from rayd.run.assemble import assemble
from rayd.seeds import seed_of

log = logging.getLogger(__name__)

CONTROLS = (
    "random@floats", "herding@floats", "random@raw", "herding@raw", "random@jpeg", "herding@jpeg", "start", "full",
)  # fmt: skip
BUDGETS = ("floats", "raw", "jpeg")
FEATURE_STEPS = 300


@dataclass(frozen=True)
class RowTask:
    row: str
    net: int
    """Position in the recipe's networks."""
    seeds: tuple[int, ...]


class Scorer:
    """Everything an ask needs, built once in a process."""

    def __init__(self, run: Run, artifact: Artifact, splits: Splits | None = None, device: str = "cpu") -> None:
        self.run, self.artifact, self.recipe = run, artifact, run.recipe
        self.splits = splits or load_data(run.data)
        self.device = torch.device(device)
        self._orders: dict[tuple[str, int], list[Tensor]] = {}
        if self.train.spec != artifact.spec or self.train.classes != artifact.classes:
            raise refuse("data", f"{self.train.name} {self.train.spec}", f"the artifact's {artifact.spec} and classes")
        self.transform = artifact.transform

    @classmethod
    def of(cls, run: Run, uri: str) -> Scorer:
        return cls(run, rayd.load(uri), device="cuda" if torch.cuda.is_available() else "cpu")

    @property
    def train(self) -> Images:
        return self.splits.train

    @cached_property
    def nets(self) -> list[Net]:
        return [config.build(self.artifact.spec) for config in self.recipe.nets or (self.run.net,)]

    def answer(self, ask: RowTask) -> list[Score]:
        """Scores on the test set."""
        return self.scores(ask, self.splits.test)

    def scores(self, ask: RowTask, test: Images) -> list[Score]:
        name, _, way = ask.row.partition("/")
        recipe = {
            "": self.recipe, "hard": replace(self.recipe, labels="hard"),
            "bare": replace(self.recipe, augment=None, cutmix=0.0, mixup=0.0),
        }[way]  # fmt: skip
        out: list[Score] = []
        for seeds in [(seed,) for seed in ask.seeds] if name.startswith("random@") else [ask.seeds]:
            out += evaluate(
                recipe, self.nets[ask.net], self.source(name, seeds[0]), test, self.transform, seeds, device=self.device,
                step_size=self.artifact.step_size, teacher=self._teacher,
            )  # fmt: skip
        return out

    def source(self, row: str, seed: int) -> ImageSet:
        codec = self.artifact.codec
        if row == "distilled":
            return ImageSet.of(codec)
        if row == "distilled-8bit":
            images = self.transform(self.artifact.images("uint8"))
            return ImageSet.tensors(images, self.artifact.labels, self.artifact.spec, self.artifact.targets)
        if row == "full":
            return ImageSet.of(self.train, self.transform)
        if row == "start":
            return ImageSet.of(assemble(self.run, self.device).codec)
        kind, _, budget = known(row).partition("@")
        return ImageSet.of(self.real(kind, budget, seed), self.transform)

    def real(self, kind: str, budget: str, seed: int) -> Images:
        """The real images of a control."""
        room, spec = self.artifact.ledger, self.artifact.spec
        order = self._order(kind, seed if kind == "random" else self.run.seed)
        if budget == "jpeg":
            return self._as_jpeg(coreset.in_turn(order, len(self.train)), room["bytes"])
        n = round(room["floats"] / spec.floats) if budget == "floats" else room["bytes"] // (spec.floats + 1)
        return self.train.select(coreset.in_turn(order, min(max(n, spec.classes), len(self.train))))

    def _order(self, kind: str, seed: int) -> list[Tensor]:
        if (kind, seed) not in self._orders:
            most = len(self.train) if kind == "random" else self._most()
            features = None if kind == "random" else self._features
            self._orders[kind, seed] = coreset.orders(kind, self.train, most, seed, features)
        return self._orders[kind, seed]

    def _most(self) -> int:
        """Images of a class that the largest budget may ask for: a JPEG rarely takes under a tenth of its pixels."""
        spec, size = self.artifact.spec, int(self.artifact.ledger["bytes"])
        return max(size // (spec.floats + 1), size // max(spec.floats // 10, 300)) // spec.classes + 2

    @cached_property
    def _features(self) -> Tensor:
        """Embeddings of the training set by a network trained on it, on the CPU."""
        steps = min(FEATURE_STEPS, self.recipe.steps)
        recipe = replace(self.recipe, steps=steps, labels="hard", learned=False, mixup=0.0, cutmix=0.0)
        net, source = self.nets[0], ImageSet.of(self.train, self.transform)
        theta = trained(recipe, net, source, None, seed_of(self.run.seed, "features"))
        with torch.no_grad():
            parts = torch.arange(len(source)).split(500)
            return torch.cat([net.features(theta, source.decode(part)[0])[-1] for part in parts])

    @cached_property
    def _teacher(self) -> tuple[Net, Tensor] | None:
        """The network whose parameters the artifact carries, where its recipe asks one."""
        held = [one.tensor for one in self.artifact.stored.values() if one.role == "teacher"]
        return (self.run.net.build(self.artifact.spec), held[0].flatten()) if held else None

    def _as_jpeg(self, order: Tensor, room: int) -> Images:
        """As many of them, in this order, as fit; as they look once compressed."""
        kept: list[Tensor] = []
        sizes = 0
        for index in order:
            data = jpeg(self.train.pixels_NCHW[index])
            sizes += len(data) + 1
            if sizes > room and len(kept) >= self.artifact.spec.classes:
                break
            kept.append(unjpeg(data))
        few = self.train.select(order[: len(kept)])
        return replace(few, pixels_NCHW=torch.stack(kept))


def known(control: str) -> str:
    kind, _, budget = control.partition("@")
    if control not in ("start", "full") and (kind not in coreset.KINDS or budget not in BUDGETS):
        raise refuse("controls", control, f"start | full | {'|'.join(coreset.KINDS)} @ {'|'.join(BUDGETS)}")
    return control


def rows_asked(controls: bool | Sequence[str]) -> tuple[str, ...]:
    """All of them, none, or those named; a name that is none is refused before anything is scored."""
    if isinstance(controls, bool):
        return CONTROLS if controls else ()
    return tuple(known(one) for one in controls)


def rows_of(run: Run, artifact: Artifact, controls: Sequence[str]) -> list[str]:
    soft = any(one.role == "labels" for one in artifact.stored.values()) or run.recipe.labels == "teacher"
    hard = ["distilled/hard"] if soft else []
    bare = ["distilled/bare", "random@floats/bare"] if "random@floats" in controls and run.recipe.augment else []
    return ["distilled", "distilled-8bit", *hard, *controls, *bare]


def row_tasks(run: Run, artifact: Artifact, controls: Sequence[str]) -> list[RowTask]:
    """Every row under the first network; the set itself and random images of its floats under the others."""
    seeds = [seed_of(run.seed, "score", i) for i in range(run.recipe.seeds)]
    rows, cross = rows_of(run, artifact, controls), ["distilled", *(["random@floats"] if controls else [])]
    plan = [(row, 0) for row in rows] + [(row, n) for n in range(1, len(run.recipe.nets)) for row in cross]
    return [RowTask(row, net, tuple(seeds)) for row, net in plan]


def inline(scorer: Scorer, asks: Sequence[RowTask]) -> Iterator[tuple[RowTask, list[Score] | str]]:
    """Answers one after another; a control that cannot be had here is said, and the others go on."""
    for ask in asks:
        yield ask, attempt(scorer.answer, ask)


def attempt(answer: Callable[[RowTask], list[Score]], ask: RowTask) -> list[Score] | str:
    if ask.row.startswith("distilled"):
        return answer(ask)
    try:
        return answer(ask)
    except (Refused, Failed) as error:
        log.warning("control %s left out: %s", ask.row, error)
        return str(error)
