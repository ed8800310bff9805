"""The costs of a run before anything is allocated: exact where arithmetic is exact, measured where it is not.

    sizes      bytes of a buffer, an artifact and a step, by arithmetic
    scoring    epochs, steps and floating-point operations of the score
    probe      seconds and memory of each stage, from a few real steps
    presets    the table of presets in configs/README.md

Counts, buffer, ledger, traffic and scoring follow from the config. Seconds and memory come from a probe: a few real steps
of each stage on the real device, each stage in a process of its own. rayd.run.cost compares a plan with what a run left.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rayd.config import Run
from rayd.data.images import Splits
from rayd.data.load import load as load_data
from rayd.errors import Failed
from rayd.machine import device_kind, free_memory
from rayd.nets.convnet import Net
from rayd.numbers import duration, size_text
from rayd.run.experts import planned_chunk, units_of
from rayd.run.recorder import VALIDATION_NETS, VALIDATION_SHARE
from rayd.store import Store
from rayd.studies.plan.probe import STAGES, request
from rayd.studies.plan.scoring import Scoring
from rayd.studies.plan.sizes import LedgerSize, ledger_size, row_bytes, shard_bytes

Measured = dict[str, dict[str, float]]
"""Stage -> figures of its probe."""
Probe = Callable[[Run, float], Measured]


@dataclass(frozen=True)
class BufferSize:
    """The experts and their buffer; all zero where the method needs none."""

    experts: int = 0
    shards: int = 0
    kept: int = 0
    """Snapshots of each expert."""
    of: int = 0
    """Snapshots there would be if every epoch were kept."""
    trained: int = 0
    """Epochs that are run."""
    parameters: int = 0
    row: int = 0
    """Bytes of one snapshot."""
    bytes: int = 0
    """Of all shards."""
    slack: int = 0
    """More bytes that the shards may take, where the length of a loss's text decides; 0: exact."""
    images: int = 0
    """Training images gone through by all experts."""
    batch: int = 0
    micro: int = 0
    """Images of each expert in one pass; 0: as many as fit on the GPU that trains them, which is not here."""


@dataclass(frozen=True)
class DataSize:
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
    inner: int = 0
    """What the workers of one item sum within a step, where there are more workers than items."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All costs. `seconds` and `peak` are empty without a probe."""

    sentence: str
    fingerprint: str
    experts: BufferSize
    data: DataSize
    ledger: LedgerSize
    scoring: Scoring
    traffic: Traffic
    steps: int
    seconds: Mapping[str, float]
    """By stage, on the resources of the run's scale."""
    peak: Mapping[str, int]
    """Bytes of one process, by stage."""
    warnings: tuple[str, ...]
    """What would make the run infeasible."""

    def json(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """For people."""
        return [f"{name:<9} {value}" for name, value in self._facts()]

    def _facts(self) -> Iterator[tuple[str, str]]:
        e, d, ledger, t = self.experts, self.data, self.ledger, self.traffic
        yield "method", self.sentence
        images = f"{d.train:,} train, {d.val:,} val, {d.test:,} test"
        yield "data", f"{images} of {'x'.join(map(str, d.shape))}, {d.classes} classes: {size_text(d.bytes)} decoded"
        if e.experts:
            snapshots = f"{e.kept} of {e.of} snapshots kept, {e.trained} epochs trained"
            passes = f"{e.micro or 'as many as fit'} of {e.batch} images in a pass"
            yield "experts", f"{e.experts} x {e.parameters:,} parameters in {e.shards} shards, {snapshots}, {passes}"
            exact = f", at most {e.slack:,} more" if e.slack else ""
            saved = f" ({size_text(e.bytes * e.of // e.kept)} if all were kept)" if e.of > e.kept else ""
            yield "buffer", f"{e.bytes:,} bytes{exact}: {size_text(e.bytes)}{saved}"
        roles = ", ".join(f"{role} {count:,}" for role, count in ledger.by_role.items())
        size = f"{ledger.bytes:,} bytes, IPC {ledger.ipc:.4g}, {ledger.images:,} images decoded"
        yield "ledger", f"{ledger.floats:,} floats ({roles}), {size}"
        workers = f"{t.workers} worker{'s' if t.workers > 1 else ''}"
        inner = f", and {size_text(t.inner)} within an item" if t.inner else ""
        yield "step", f"reads {size_text(t.read)} of the buffer, sums {size_text(t.reduced)} over {workers}{inner}"
        hours = sum(self.seconds.get(stage, 0.0) for stage in ("evaluate", "controls")) / 3600
        yield "scoring", self.scoring.text() + (f"; {hours:.2g} hours" if hours else "")
        if self.peak:
            yield "memory", ", ".join(f"{stage} {size_text(n)}" for stage, n in self.peak.items()) + " a process"
        if self.seconds:
            parts = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in self.seconds.items())
            yield "time", f"{duration(sum(self.seconds.values()))}: {parts}"
        for warning in self.warnings:
            yield "warning", warning


def plan(run: Run, probe_seconds: float = 20, probe: Probe | None = None) -> Plan:
    """The plan of a run. `probe`: how the stages are measured, a child process each unless the fleet says otherwise."""
    splits = load_data(run.data)
    spec = splits.train.spec
    experts, ledger = _buffer(run, splits, run.net.build(spec)), ledger_size(run, spec)
    scoring = Scoring.of(run, spec, ledger, len(splits.train))
    measured = (probe or measure)(run, probe_seconds) if probe_seconds > 0 else {}
    train, val, test = (len(part) for part in (splits.train, splits.val, splits.test))
    peak = {stage: int(figures["peak"]) for stage, figures in measured.items()}
    if "evaluate" in measured:
        peak["controls"] = int(measured["evaluate"]["real_peak"])
    guess = {"items": getattr(run.method.objective, "items", 1), "reduced": 8 * (3 + ledger.moved)}
    items, reduced = (int(measured.get("distill", guess)[name]) for name in ("items", "reduced"))
    read = 2 * items * experts.row if "segment" in run.method.needs else 0
    passes = getattr(run.method.objective, "passes", 0)
    inner = 4 * passes * run.net.build(spec).size if run.scale.workers > items else 0
    return Plan(
        sentence=run.method.sentence,
        fingerprint=run.fingerprint(),
        experts=experts,
        data=DataSize(train, val, test, tuple(spec.shape), spec.classes, (train + val + test) * spec.floats),
        ledger=ledger,
        scoring=scoring,
        traffic=Traffic(read, reduced, run.scale.workers, inner),
        steps=run.method.steps,
        seconds=_seconds(run, experts, scoring, train, measured),
        peak=peak,
        warnings=tuple(_warnings(run, experts, peak, items)),
    )


def _buffer(run: Run, splits: Splits, net: Net) -> BufferSize:
    config = run.expert
    if not run.method.reads_experts:
        return BufferSize()
    units = units_of(run)
    epochs = units[0].epochs
    checked = min(config.check, len(splits.val))
    resident = len(splits.train) * splits.train.spec.floats
    shards = [shard_bytes(config, unit, net.size, checked) for unit in units]
    least, most = (sum(sizes) for sizes in zip(*shards, strict=True))
    return BufferSize(
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
        batch=config.batch,
        micro=planned_chunk(run, net, device_kind(run.scale.gpus), resident, free_memory),
    )


def _seconds(run: Run, experts: BufferSize, scoring: Scoring, train: int, measured: Measured) -> dict[str, float]:
    """Of every stage: the start, then the steps at their pace. `controls` come on top of `evaluate`."""
    out: dict[str, float] = {}
    scale, method = run.scale, run.method
    if "experts" in measured and experts.experts:
        probe = measured["experts"]
        actors = 1 if scale.name == "inline" else min(scale.actors or 1, experts.shards)
        shards = -(-experts.shards // actors)
        pace = experts.images * probe["image_s"] + experts.experts * (experts.trained + 1) * probe["check_s"]
        out["experts"] = probe["process_s"] + probe["cold_s"] + (shards - 1) * probe["warm_s"] + pace / actors
    if "distill" in measured:
        probe = measured["distill"]
        items = int(probe["items"])
        share = -(-items // scale.workers) / items
        if hasattr(method.objective, "passes"):
            share = min(share, 1 / scale.workers)
        start = probe["process_s"] + probe["start_s"] + probe["first_s"]
        out["distill"] = start + method.steps * probe["step_s"] * share
    if "evaluate" in measured:
        probe = measured["evaluate"]
        validations = -(-method.steps // method.validate) if method.validate else 0
        if "distill" in out:
            out["distill"] += validations * VALIDATION_NETS * probe["net_s"] / VALIDATION_SHARE
        out["evaluate"] = probe["process_s"] + probe["cold_s"] + scoring.networks * probe["net_s"]
        measured_images = scoring.steps * min(run.recipe.batch, train)
        out["controls"] = scoring.control_images / measured_images * probe["real_s"]
    return out


def _warnings(run: Run, experts: BufferSize, peak: Mapping[str, int], items: int) -> Iterator[str]:
    """What this machine shows; placement on a cluster is the fleet's to refuse."""
    if run.scale.workers > items and not hasattr(run.method.objective, "passes"):
        yield f"scale.workers={run.scale.workers}: a step has {items} items; lower method.objective.classes_per_item"
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for stage, need in peak.items():
        if need > 0.9 * here:
            yield f"{stage} needs {size_text(need)} of {size_text(here)} memory: raise method.objective.micro"
    store = Store(run.experts_at)
    if experts.bytes and store.local is not None:
        folder = next(folder for folder in (store.local, *store.local.parents) if folder.exists())
        free = shutil.disk_usage(folder).free
        if experts.bytes > 0.95 * free:
            takes, have = size_text(experts.bytes), size_text(free)
            yield f"the buffer needs {takes}, {folder} has {have} free: expert.storage=fp16 halves it"


def measure(run: Run, seconds: float) -> Measured:
    """Each stage in a fresh process of this machine, so that its memory and its compilation are its own."""
    measured: Measured = {}
    for stage in stages(run):
        spec = json.dumps(request(run, stage, seconds))
        words, limit = [sys.executable, "-m", "rayd.studies.plan"], seconds * 10 + 600
        child = subprocess.run(words, input=spec, capture_output=True, text=True, timeout=limit, check=False)
        if child.returncode != 0:
            reason = f"ended with {child.returncode}; probe=0 leaves it out:\n{child.stderr[-2000:]}"
            raise Failed(f"probe of {stage} {reason}")
        measured[stage] = json.loads(child.stdout.strip().splitlines()[-1])
    return measured


def stages(run: Run) -> tuple[str, ...]:
    """Those that cost something in this run."""
    return tuple(stage for stage in STAGES if stage != "experts" or run.method.reads_experts)
