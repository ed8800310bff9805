"""What a run will cost, said before anything is allocated: exact where arithmetic is exact, measured where it is not.

Counts, buffer, ledger and traffic follow from the config. Seconds and memory come from a probe: a few real steps of
each stage on the real device, each in a process of its own. `against` compares a plan with what a run left.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rayd.config import Run
from rayd.data.images import Splits
from rayd.data.load import load as load_data
from rayd.errors import Failed
from rayd.experts.config import plan_units
from rayd.nets.convnet import Net
from rayd.readable import duration, size_text
from rayd.run.assemble import last_matched
from rayd.run.rows import CONTROLS, FEATURE_STEPS
from rayd.store import Store
from rayd.studies.plan.probe import STAGES, request
from rayd.studies.plan.sizes import Weight, row_bytes, shard_bytes, weigh

Measured = dict[str, dict[str, float]]
Probe = Callable[[Run, float], Measured]


@dataclass(frozen=True)
class Experts:
    """The buffer; all zero where the method needs none."""

    experts: int
    shards: int
    kept: int
    """Snapshots of each expert."""
    of: int
    """Snapshots there would be if every epoch were kept."""
    trained: int
    """Epochs that are run."""
    parameters: int
    row: int
    """Bytes of one snapshot."""
    bytes: int
    """Of all shards."""
    slack: int
    """More bytes that the shards may take, where the length of a loss's text decides; 0: exact."""
    images: int
    """Training images gone through by all experts."""


@dataclass(frozen=True)
class Data:
    train: int
    val: int
    test: int
    shape: tuple[int, ...]
    classes: int
    bytes: int
    """Decoded, uint8: what is resident on a device or mapped."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of one distillation step."""

    read: int
    """Rows of the buffer, all workers together."""
    reduced: int
    """The vector that one all-reduce sums; a ring sends twice this from each worker."""
    workers: int


@dataclass(frozen=True)
class Plan:
    """The answer. `seconds` and `peak` are empty without a probe."""

    sentence: str
    fingerprint: str
    experts: Experts
    data: Data
    ledger: Weight
    traffic: Traffic
    steps: int
    seconds: Mapping[str, float]
    """By stage, on the resources of the run's scale."""
    peak: Mapping[str, int]
    """Bytes of one process, by stage."""
    warnings: tuple[str, ...]
    """What would make it infeasible."""

    def json(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def lines(self) -> list[str]:
        """For people."""
        e, d, w, t = self.experts, self.data, self.ledger, self.traffic
        lines = [f"method    {self.sentence}"]
        shape = "x".join(map(str, d.shape))
        lines.append(
            f"data      {d.train:,} train, {d.val:,} val, {d.test:,} test of {shape}, {d.classes} classes: "
            f"{size_text(d.bytes)} decoded"
        )
        if e.experts:
            whole = e.bytes * e.of // e.kept
            saved = f" ({size_text(whole)} if all were kept)" if e.of > e.kept else ""
            exact = "" if not e.slack else f", at most {e.slack:,} more"
            lines.append(
                f"experts   {e.experts} x {e.parameters:,} parameters in {e.shards} shards, "
                f"{e.kept} of {e.of} snapshots kept, {e.trained} epochs trained"
            )
            lines.append(f"buffer    {e.bytes:,} bytes{exact}: {size_text(e.bytes)}{saved}")
        roles = ", ".join(f"{role} {count:,}" for role, count in w.by_role.items())
        lines.append(
            f"ledger    {w.floats:,} floats ({roles}), {w.bytes:,} bytes, IPC {w.ipc:.4g}, {w.images:,} images decoded"
        )
        lines.append(
            f"step      reads {size_text(t.read)} of the buffer, sums {size_text(t.reduced)} over {t.workers} "
            f"worker{'s' if t.workers > 1 else ''}"
        )
        if self.peak:
            told = ", ".join(f"{stage} {size_text(n)}" for stage, n in self.peak.items())
            lines.append(f"memory    {told} a process")
        if self.seconds:
            parts = ", ".join(f"{stage} {duration(s)}" for stage, s in self.seconds.items())
            lines.append(f"time      {duration(sum(self.seconds.values()))}: {parts}")
        lines += [f"warning   {warning}" for warning in self.warnings]
        return lines


def plan(run: Run, probe_seconds: float = 20, probe: Probe | None = None) -> Plan:
    """The plan of a run. `probe`: how the stages are measured, a child process each unless the fleet says otherwise."""
    splits = load_data(run.data)
    spec = splits.train.spec
    net = run.net.build(spec)
    experts, weight = _experts(run, splits, net), weigh(run, spec)
    measured = (probe or in_children)(run, probe_seconds) if probe_seconds > 0 else {}
    train, val, test = (len(part) for part in (splits.train, splits.val, splits.test))
    data = Data(train, val, test, tuple(spec.shape), spec.classes, (train + val + test) * spec.floats)
    seconds = _seconds(run, experts, measured, "labels" in weight.by_role)
    peak = {stage: int(told["peak"]) for stage, told in measured.items()}
    if "evaluate" in measured:
        peak["controls"] = int(measured["evaluate"]["real_peak"])
    guessed = {"items": getattr(run.method.objective, "items", 1), "reduced": 8 * (3 + weight.moved)}
    items, reduced = (int(measured.get("distill", guessed)[name]) for name in ("items", "reduced"))
    read = 2 * items * experts.row if "segment" in run.method.needs else 0
    traffic = Traffic(read, reduced, run.scale.workers)
    warnings, steps = tuple(_warnings(run, experts, peak, items)), run.method.steps
    name = run.method.sentence
    return Plan(name, run.fingerprint(), experts, data, weight, traffic, steps, seconds, peak, warnings)


def _experts(run: Run, splits: Splits, net: Net) -> Experts:
    config = run.expert
    if not run.method.reads_experts:
        return Experts(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    units = plan_units(config, run.seed, last_matched(run))
    epochs = units[0].epochs
    checked = min(config.check, len(splits.val))
    shards = [shard_bytes(config, unit, net.size, checked) for unit in units]
    least, most = (sum(sizes) for sizes in zip(*shards, strict=True))
    return Experts(
        experts=config.experts,
        shards=len(units),
        kept=len(epochs),
        of=config.epochs + 1,
        trained=epochs[-1],
        parameters=net.size,
        row=row_bytes(net.size, config.storage),
        bytes=least,
        slack=most - least,
        images=config.experts * epochs[-1] * len(splits.train),
    )


def _seconds(run: Run, experts: Experts, measured: Measured, soft: bool) -> dict[str, float]:
    """Of every stage: what it spends before it runs at its pace, and the pace. `controls` come on top of `evaluate`."""
    out: dict[str, float] = {}
    scale, method, recipe = run.scale, run.method, run.recipe
    if "experts" in measured and experts.experts:
        told = measured["experts"]
        hands = 1 if scale.name == "inline" else min(scale.actors or 1, experts.shards)
        shards = -(-experts.shards // hands)
        pace = experts.images * told["image_s"] + experts.experts * (experts.trained + 1) * told["check_s"]
        out["experts"] = told["process_s"] + told["cold_s"] + (shards - 1) * told["warm_s"] + pace / hands
    validations = 0
    if method.validate:
        validations = -(-method.steps // method.validate)
    if "distill" in measured:
        told = measured["distill"]
        share = -(-int(told["items"]) // scale.workers) / told["items"]
        before = told["process_s"] + told["start_s"] + told["first_s"]
        out["distill"] = before + method.steps * told["step_s"] * share
    if "evaluate" in measured:
        told = measured["evaluate"]
        out["distill"] += validations * 2 * told["net_s"] / 4 if "distill" in out else 0.0
        cross = max(0, len(recipe.nets) - 1)
        views = 3 if soft or recipe.labels == "teacher" else 2  # as decoded, in 8 bits, under hard labels
        others = len(CONTROLS) + (2 if recipe.augment else 0) + cross
        steps = recipe.steps or FEATURE_STEPS
        features = min(FEATURE_STEPS, steps) / steps
        out["evaluate"] = told["process_s"] + told["cold_s"] + recipe.seeds * (views + cross) * told["net_s"]
        out["controls"] = (recipe.seeds * others + features) * told["real_s"]
    return out


def _warnings(run: Run, experts: Experts, peak: Mapping[str, int], items: int) -> list[str]:
    """What this machine can say; placement on a cluster is the fleet's to refuse."""
    found = []
    if run.scale.workers > items:
        found.append(f"scale.workers={run.scale.workers}: a step has {items} items; set method.objective.items")
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for stage, need in peak.items():
        if need > 0.9 * here:
            found.append(f"{stage} needs {size_text(need)} of {size_text(here)} memory: raise method.objective.micro")
    store = Store(run.experts_at)
    if experts.bytes and store.local is not None:
        place = next(folder for folder in (store.local, *store.local.parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if experts.bytes > 0.95 * free:
            takes, have = size_text(experts.bytes), size_text(free)
            found.append(f"the buffer needs {takes}, {place} has {have} free: expert.storage=fp16 halves it")
    return found


def in_children(run: Run, seconds: float) -> Measured:
    """Each stage in a fresh process of this machine, so that its memory and its compilation are its own."""
    measured: Measured = {}
    for stage in stages(run):
        spec = json.dumps(request(run, stage, seconds))
        words = [sys.executable, "-m", "rayd.studies.plan"]
        limit = seconds * 10 + 600
        done = subprocess.run(words, input=spec, capture_output=True, text=True, timeout=limit, check=False)
        if done.returncode != 0:
            tail = done.stderr[-2000:]
            raise Failed(f"probe of {stage} ended with {done.returncode}; probe=0 leaves it out:\n{tail}")
        measured[stage] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def stages(run: Run) -> tuple[str, ...]:
    """Those that cost something in this run."""
    return tuple(stage for stage in STAGES if stage != "experts" or run.method.reads_experts)
