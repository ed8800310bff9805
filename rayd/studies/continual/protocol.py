"""Tasks, orders, units of work and measurements. A unit is one memory under one class order; its outcome is a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from rayd import numbers
from rayd.config import MethodConfig, Run
from rayd.data.load import load as load_data
from rayd.errors import Refused, refuse
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.score import trained
from rayd.machine import device_for, use_threads
from rayd.nets.convnet import Net
from rayd.run.assemble import surroundings
from rayd.schema import fingerprint, parse, positive, to_dict
from rayd.seeds import generator, seed_of
from rayd.store import Store
from rayd.studies.continual.memory import Memory, check, memory_of, task_images


@dataclass(frozen=True, kw_only=True)
class ContinualConfig:
    """Tasks, orders, and the memories that are compared at equal bytes."""

    tasks: int = 5
    """The classes come in as many parts, one after another."""
    orders: int = 3
    """Random orders of the classes, by the run's seed."""
    class_orders: tuple[tuple[int, ...], ...] = ()
    """Orders to use instead; each names every class once."""
    bytes_per_class: int = 30720
    """As stored: ten 8-bit images of 32 x 32."""
    memories: Mapping[str, Any] = field(default_factory=lambda: {"random": "random", "herding": "herding"})
    """Name -> random | herding | a method without experts: {codec: ..., objective: ..., steps: ...}."""

    def __post_init__(self) -> None:
        for name in ("tasks", "orders", "bytes_per_class"):
            positive(f"continual.{name}", getattr(self, name))
        if not self.memories:
            raise refuse("continual.memories", "{}", "at least one: random | herding | a method")
        for name in self.memories:
            self.memory(name)

    def memory(self, name: str) -> str | MethodConfig:
        plain = self.memories[name]
        return plain if isinstance(plain, str) else MethodConfig.from_plain(plain, f"continual.memories.{name}")


@dataclass(frozen=True)
class ContinualKeys:
    """The keys that jobs.continual takes beyond those of a run."""

    continual: ContinualConfig = field(default_factory=ContinualConfig)


@dataclass(frozen=True)
class ContinualRun:
    memory: str
    order: int


@dataclass(frozen=True)
class Outcome:
    """`accuracy[t][s]`: of task s after task t (s <= t), mean over networks. `bytes` and `images`: of the memory so far."""

    memory: str
    order: int
    classes: tuple[tuple[int, ...], ...]
    accuracy: tuple[tuple[float, ...], ...]
    average: tuple[float, ...]
    """After each task, over the classes seen."""
    forgetting: float
    bytes: tuple[int, ...]
    images: tuple[int, ...]


def class_orders(config: ContinualConfig, classes: int, seed: int) -> list[list[tuple[int, ...]]]:
    """The tasks of each order; an order that is no partition of the classes is refused."""
    if not 1 <= config.tasks <= classes:
        raise refuse("continual.tasks", config.tasks, f"1 to {classes}, the number of classes")
    orders = config.class_orders or tuple(
        tuple(torch.randperm(classes, generator=generator(seed, "order", i)).tolist()) for i in range(config.orders)
    )
    for order in orders:
        if sorted(order) != list(range(classes)):
            odd = sorted(set(range(classes)) ^ set(order)) or [c for c in order if order.count(c) > 1]
            raise refuse(
                "continual.class_orders", list(order), f"every class from 0 to {classes - 1} once", f"see {odd[0]}"
            )
    cuts = [round(i * classes / config.tasks) for i in range(config.tasks + 1)]
    return [[order[a:b] for a, b in pairwise(cuts)] for order in orders]


def units(config: ContinualConfig) -> list[ContinualRun]:
    """Orders outside, so that the first ones compare all memories."""
    orders = len(config.class_orders) or config.orders
    return [ContinualRun(name, order) for order in range(orders) for name in config.memories]


def learn(run: Run, config: ContinualConfig, unit: ContinualRun) -> Outcome:
    """Task after task: the memory of the task is made, then a fresh network is trained on all memories and tested."""
    use_threads(run.scale.threads)
    device = device_for(run.scale.gpus)
    splits, transform, net = surroundings(run)
    transform = transform.to(device)
    spec = splits.train.spec
    tasks = class_orders(config, spec.classes, run.seed)[unit.order]
    what = config.memory(unit.memory)
    parts: list[Memory] = []
    table: list[tuple[float, ...]] = []
    averages, sizes, counts = list[float](), list[int](), list[int]()
    for t, classes in enumerate(tasks):
        seed = seed_of(run.seed, "memory", unit.memory, unit.order, t)
        images = task_images(splits.train, classes)
        part = memory_of(what, images, classes, spec, config.bytes_per_class, net=run.net, transform=transform,
                         recipe=run.recipe, seed=seed)  # fmt: skip
        parts.append(part)
        memory = Memory.joined(parts)
        source = ImageSet.tensors(memory.images_NCHW, memory.classes_N, spec, memory.targets_NK)
        seeds = [seed_of(run.seed, "learner", unit.order, t, i) for i in range(run.recipe.seeds)]
        seen = [c for task in tasks[: t + 1] for c in task]
        of_seen = torch.isin(splits.test.labels_N, torch.tensor(seen)).nonzero().flatten()
        test = ImageSet.of(splits.test.select(of_seen), transform)
        rights = [right(net, trained(run.recipe, net, source, seed, device=device), test, seen) for seed in seeds]
        hits_N = torch.stack(rights).float().mean(0)
        masks = [torch.isin(test.classes_N, torch.tensor(task)) for task in tasks[: t + 1]]
        table.append(tuple(round(float(hits_N[mask].mean()), 6) for mask in masks))
        averages.append(round(float(hits_N.mean()), 6))
        sizes.append(memory.bytes)
        counts.append(len(memory.classes_N))
    return Outcome(unit.memory, unit.order, tuple(tasks), tuple(table), tuple(averages), forgetting(table),
                   tuple(sizes), tuple(counts))  # fmt: skip


@torch.no_grad()
def right(net: Net, theta_P: Tensor, test: ImageSet, seen: Sequence[int]) -> Tensor:
    """Which test images the network classifies correctly, its answers restricted to the classes seen."""
    bias_K = torch.full((net.spec.classes,), -math.inf)
    bias_K[list(seen)] = 0.0
    parts = torch.arange(len(test)).split(500)
    answers = [(net(theta_P, test.decode(part)[0]).cpu() + bias_K).argmax(1) for part in parts]
    return torch.cat(answers) == test.classes_N


def forgetting(table: Sequence[Sequence[float]]) -> float:
    """Mean over all tasks but the last of (best at an earlier time - at the end); 0 for a single task."""
    last = len(table) - 1
    drops = [max(table[t][s] for t in range(s, last)) - table[last][s] for s in range(last)]
    return fmean(drops) if drops else 0.0


# ---- all units ---------------------------------------------------------------------------------------------------------


def open_store(run: Run, config: ContinualConfig) -> tuple[Store, list[Outcome], list[ContinualRun]]:
    """The store, the outcomes in it, and the units left. Everything that can be refused is refused here."""
    spec = load_data(run.data).train.spec
    for tasks in class_orders(config, spec.classes, run.seed):
        for size in {len(classes) for classes in tasks}:
            for name in config.memories:
                check(name, config.memory(name), config.bytes_per_class, spec, size)
    store = Store(run.out).sub("continual")
    plain = {name: value for name, value in to_dict(config).items() if name not in ("memories", "orders")}
    plan = {"run": run.fingerprint(), "recipe": fingerprint(run.recipe), "continual": plain}
    keys = store.claim("plan.json", plan)
    if keys:
        differ = f"holds another continual run ({', '.join(keys)} differ)"
        raise Refused(f"out={run.out}: {differ}; give another out (memories and orders may be added)")
    outcomes: list[Outcome] = []
    left: list[ContinualRun] = []
    for unit in units(config):
        name = file_of(unit, config)
        if store.exists(name):
            outcomes.append(parse(Outcome, store.read_json(name)))
        else:
            left.append(unit)
    return store, outcomes, left


def file_of(unit: ContinualRun, config: ContinualConfig) -> str:
    """A memory of the same name and another meaning is another file."""
    return f"units/{unit.memory}-{unit.order}-{fingerprint(config.memories[unit.memory])[:8]}.json"


def keep(store: Store, config: ContinualConfig, outcome: Outcome) -> None:
    store.write_json(file_of(ContinualRun(outcome.memory, outcome.order), config), asdict(outcome))


def summary(config: ContinualConfig, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """By memory: average accuracy after each task and forgetting, mean, std and n over orders; the verdict."""
    rows: dict[str, Any] = {}
    for name in config.memories:
        members = [outcome for outcome in outcomes if outcome.memory == name]
        if members:
            rows[name] = {
                "average": [numbers.summary(step) for step in zip(*(o.average for o in members), strict=True)],
                "mean_over_tasks": numbers.summary([fmean(o.average) for o in members]),
                "forgetting": numbers.summary([o.forgetting for o in members]),
                "bytes": members[0].bytes[-1],
                "images": members[0].images[-1],
            }
    sizes = {"tasks": config.tasks, "bytes_per_class": config.bytes_per_class}
    return {**sizes, "rows": rows, "verdict": verdict(outcomes)}


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Which memory wins at equal bytes after the last task, by the differences within each order (paired t, 95 %)."""
    final: dict[str, dict[int, float]] = {}
    for outcome in outcomes:
        final.setdefault(outcome.memory, {})[outcome.order] = outcome.average[-1]
    if len(final) < 2:
        return "one memory: nothing to compare"
    first, second = sorted(final, key=lambda name: -fmean(final[name].values()))[:2]
    orders = sorted(set(final[first]) & set(final[second]))
    gap = numbers.summary([final[first][order] - final[second][order] for order in orders])
    half = gap["ci95"] if gap["n"] > 1 else math.inf
    sure = "wins" if gap["mean"] - half > 0 else "leads, not beyond chance"
    points = f"{100 * gap['mean']:+.1f} points over {second} (95 % ± {100 * half:.1f}, {gap['n']} orders)"
    return f"{first} {sure}: {points}"
