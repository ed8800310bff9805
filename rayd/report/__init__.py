"""The report of a run: one static page that needs no network, and its tables as CSV and LaTeX.

What is looked for under the run's folder (all of it optional but the artifact), and who leaves it there:

    artifact/            card, codec, ledger, timing.json            jobs.distill
    artifact/controls.json   scores, LRS and ARS, the verdict        jobs.evaluate
    metrics.jsonl        a line a step: step, loss, step_size, grad_norm, seconds, val        jobs.distill
    unrounded.safetensors    some images before their numbers were rounded       jobs.distill
    experts/experts-*.json   accuracy of every expert by epoch       jobs.experts
    timing.json          experts_s, experts_peak (bytes)         jobs.experts
    plan.json            the costs as planned                         jobs.plan

A section without its data says which command would fill it. The folder of a lone artifact is reported as well.

    facts     what a page is drawn from
    page      the sections of the page
    storage   its sections on bytes
    pieces    what sections share
    tables    the same numbers as CSV and LaTeX
    draw      figures as SVG; the door to matplotlib
    live      a run while it goes on, for jobs.watch
    shell     elements, tables and the frame of every page; what escapes text
    style     the style sheet
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rayd.artifact.load import Artifact, load
from rayd.distill.budget import from_bytes
from rayd.errors import Refused, refuse
from rayd.experts.shards import read_marker
from rayd.report import page, storage, tables
from rayd.report.facts import Facts
from rayd.run.cost import against
from rayd.run.recorder import UNROUNDED
from rayd.store import Store


def report(
    uri: str,
    buffer: str | None = None,
    to: str | None = None,
    published: tuple[str, ...] = (),
    methods: str | None = None,
    beside: tuple[str, ...] = (),
) -> str:
    """Draw the page of the run (or artifact) at `uri`; where it is. Default: its folder `report`. `methods`: the folder of
    a codec of one's own. `beside`: folders of other runs or artifacts, whose scores the figure of bytes has as well."""
    facts = replace(gather(Store(uri), Store(buffer) if buffer else None, methods), published=published)
    others = [(other, gather(Store(other), methods=methods)) for other in beside]
    facts = replace(facts, beside=storage.comparable(facts, others))
    out = Store(to) if to else Store(uri).sub("report")
    out.write("index.html", page.html(facts).encode())
    for name, text in tables.texts(facts).items():
        out.write(name, text.encode())
    return out.where("index.html")


def gather(store: Store, buffer: Store | None = None, methods: str | None = None) -> Facts:
    alone = store.exists("card.json")
    if not alone and not store.exists("artifact/card.json"):
        raise Refused(f"out={store.uri}: holds no artifact; run jobs.distill first, or give the folder of an artifact")
    kept = store if alone else store.sub("artifact")
    artifact = load(kept, methods)
    buffer = buffer or store.sub("experts")
    plan = against(store.read_json("plan.json"), store, buffer) if store.exists("plan.json") else []
    return Facts(
        artifact,
        table=artifact.table or {},
        steps=_lines(store.read("metrics.jsonl").decode()) if store.exists("metrics.jsonl") else [],
        experts=_experts(buffer),
        timing=kept.facts("timing.json") | ({} if alone else store.facts("timing.json")),
        plan=plan,
        unrounded={} if alone else _unrounded(store, artifact),
    )


def _unrounded(store: Store, artifact: Artifact) -> dict[str, Tensor]:
    """The sample that the distillation left, if it is one of this set's images."""
    if not store.exists(UNROUNDED):
        return {}
    tensors = from_bytes(store.read(UNROUNDED), UNROUNDED)
    index, pixels = tensors.get("index", torch.empty(0)), tensors.get("pixels", torch.empty(0))
    good = index.dtype == torch.int64 and index.ndim == 1 and len(index) > 0 and int(index.min()) >= 0
    if not good or int(index.max()) >= len(artifact) or pixels.shape != (len(index), *artifact.spec.shape):
        raise refuse(UNROUNDED, tuple(pixels.shape), f"images of {artifact.spec.shape} by number", "remove the file")
    return {"index": index, "pixels": pixels.float()}


def _lines(text: str) -> list[dict[str, float]]:
    """The numbers of every step; those that are not finite are left out."""
    lines = []
    for line in text.splitlines():
        try:
            read = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a line that was cut short
        if isinstance(read, dict) and isinstance(read.get("step"), int):
            lines.append({name: float(number) for name, number in read.items() if _is_number(number)})
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e30


def _experts(buffer: Store) -> list[dict[str, Any]]:
    markers = [name for name in buffer.sizes("experts-") if name.endswith(".json") and ".failed" not in name]
    rows = [row for name in sorted(markers) for row in read_marker(buffer, name)["experts"]]
    return [row for row in rows if row["val_accuracy"] and None not in row["val_accuracy"]]
