"""The score of a set of any origin, and of real images at as many floats, under one recipe and one network.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.artifact.load import Artifact
from rayd.data.images import Images, Splits
from rayd.data.transform import Transform
from rayd.errors import refuse
from rayd.evaluate import coreset
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.recipe import RecipeConfig
from rayd.evaluate.row import RowName
from rayd.evaluate.score import embedder, evaluate
from rayd.evaluate.verdict import concluded
from rayd.machine import device_for
from rayd.nets.convnet import NetConfig
from rayd.numbers import summary
from rayd.run.rows import FEATURE_STEPS
from rayd.schema import to_dict
from rayd.seeds import seed_of


@dataclass(frozen=True)
class Contender:
    """A set, the real images, and how both are scored. `set` is in network space."""

    set: ImageSet
    splits: Splits
    transform: Transform
    recipe: RecipeConfig
    net: NetConfig
    device: torch.device
    step_size: float | None = None
    teacher: tuple[Any, Tensor] | None = None
    own: Mapping[str, coreset.Pick] | None = None
    """Kinds of controls of one's own."""

    @classmethod
    def of(
        cls,
        images: Artifact | Images | Tensor,
        labels: Any,
        splits: Splits,
        recipe: RecipeConfig,
        net: NetConfig,
        space: str = "pixels",
        gpus: float = 0.0,
        own: Mapping[str, coreset.Pick] | None = None,
    ) -> Contender:
        device, spec = device_for(gpus), splits.train.spec
        if isinstance(images, Artifact):
            if images.spec != spec or images.classes != splits.train.classes:
                raise refuse("data", f"{splits.train.name} {spec}", f"the artifact's {images.spec} and classes")
            transform = images.transform.to(device)
            teacher = None if images.teacher is None else (net.build(spec), images.teacher.flatten())
            source = ImageSet.of(images.codec.to(device))
            return cls(source, splits, transform, recipe, net, device, images.step_size, teacher, own)
        transform = Transform.fit(splits.train, "normalise").to(device)
        if isinstance(images, Images):
            labels, images = images.labels_N, images.pixels_NCHW[torch.arange(len(images))]
        network_NCHW, targets_NK = _network(images, space, transform), _targets(labels, len(images), spec.classes)
        if tuple(network_NCHW.shape[1:]) != spec.shape:
            raise refuse("images", list(network_NCHW.shape[1:]), f"images of {list(spec.shape)}, as the data are")
        source = ImageSet.tensors(network_NCHW.to(device), targets_NK.argmax(1), spec, targets_NK.to(device))
        return cls(source, splits, transform, recipe, net, device, own=own)

    def score(self) -> dict[str, Any]:
        """mean, std, n, ci95 of the set, the accuracy of each network, and what it was measured with."""
        figures = summary(self._accuracies(lambda seed: self.set, self._seeds))
        about = {"net": self.net.name, "recipe": self.recipe.name, "images": len(self.set)}
        return {
            **{key: value for key, value in figures.items() if key != "values"},
            "accuracies": figures["values"],
            **about,
        }

    def table(self, names: Sequence[str]) -> dict[str, Any]:
        """The set and its controls, as controls.json has them."""
        spec = self.splits.train.spec
        floats = len(self.set) * spec.floats
        rows = [self._row("distilled", len(self.set), self._accuracies(lambda seed: self.set, self._seeds))]
        for name in names:
            row = RowName.control(name, self.own or ())
            if row.kind == "start" or row.budget not in ("", "floats"):
                raise refuse("names", name, "full, or KIND@floats, for a set that no run made")
            count = len(self.splits.train) if row.kind == "full" else min(len(self.set), len(self.splits.train))
            rows.append(self._row(name, count, self._accuracies(self._real(row.kind, count), self._seeds)))
        return {
            "rows": rows, "skipped": {}, **concluded(rows, self.net.name), "recipe": to_dict(self.recipe),
            "nets": [self.net.name], "floats": floats, "bytes": len(self.set) * spec.floats * 4, "classes": spec.classes,
        }  # fmt: skip

    @property
    def _seeds(self) -> list[int]:
        return [seed_of(0, "score", i) for i in range(self.recipe.seeds)]

    def _row(self, name: str, images: int, accuracies: list[float]) -> dict[str, Any]:
        row = {"set": name, "images": images, "budget": RowName.parse(name).budget, "view": "exact"}
        return {**row, "net": self.net.name, "recipe": self.recipe.name, **summary(accuracies)}

    def _real(self, kind: str, count: int) -> Callable[[int], ImageSet]:
        """The real images that the network of a seed is trained on."""
        train = self.splits.train

        def of_seed(seed: int) -> ImageSet:
            if kind == "full":
                return ImageSet.of(train, self.transform)
            features = None if kind == "random" else self._features
            order = coreset.orders(kind, train, count, seed if kind == "random" else 0, features, self.own)
            return ImageSet.of(train.select(coreset.in_turn(order, count)), self.transform)

        return of_seed

    @cached_property
    def _features(self) -> coreset.Features:
        source = ImageSet.of(self.splits.train, self.transform)
        recipe = self.recipe.shortened(min(FEATURE_STEPS, source.length(self.recipe).steps))
        return embedder(recipe, self.net.build(self.splits.train.spec), source, seed_of(0, "features"), self.device)

    def _accuracies(self, source: Callable[[int], ImageSet], seeds: Sequence[int]) -> list[float]:
        net, test = self.net.build(self.splits.train.spec), ImageSet.of(self.splits.test, self.transform)
        return [
            evaluate(
                self.recipe, net, source(seed), test, None, [seed],
                device=self.device, step_size=self.step_size, teacher=self.teacher,
            )[0].accuracy
            for seed in seeds
        ]  # fmt: skip


def _network(images: Any, space: str, transform: Transform) -> Tensor:
    """In network space."""
    tensor = torch.as_tensor(images)
    tensor = tensor[:, None] if tensor.ndim == 3 else tensor
    if space not in ("pixels", "network"):
        raise refuse("space", space, "pixels | network")
    if space == "network":
        return tensor.float()
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise refuse("images", tensor.dtype, "torch.uint8, or floats from 0 to 1")
    return transform(tensor.to(transform.device))


def _targets(labels: Any, n: int, classes: int) -> Tensor:
    """Label probabilities [N, K]."""
    if labels is None:
        raise refuse("labels", None, "class numbers [N], or probabilities [N, K]")
    tensor = torch.as_tensor(labels)
    if len(tensor) != n:
        raise refuse("labels", f"{len(tensor)} of them", f"one for each of the {n} images")
    if tensor.ndim == 2:
        if tensor.shape[1] != classes:
            raise refuse("labels", list(tensor.shape), f"[N, {classes}], for the data have {classes} classes")
        return tensor.float()
    if not 0 <= int(tensor.min()) <= int(tensor.max()) < classes:
        raise refuse("labels", f"{int(tensor.min())} to {int(tensor.max())}", f"class numbers from 0 to {classes - 1}")
    return F.one_hot(tensor.long(), classes).float()
