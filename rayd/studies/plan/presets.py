"""The table of presets in configs/README.md: how long a score trains here, and how long in the paper."""

from __future__ import annotations

from collections.abc import Mapping

from rayd.config import Run
from rayd.data.images import Spec
from rayd.studies.plan.scoring import Scoring
from rayd.studies.plan.sizes import ledger_size

BEGIN, END = "<!-- scoring of presets: begin -->", "<!-- scoring of presets: end -->"
RATE = 1e13
"""Floating-point operations a second that hours are stated for."""
DATASETS: dict[str, tuple[Spec, int]] = {
    "cifar10": (Spec((3, 32, 32), 10), 50_000),
    "cifar100": (Spec((3, 32, 32), 100), 50_000),
    "svhn": (Spec((3, 32, 32), 10), 73_257),
    "mnist": (Spec((1, 28, 28), 10), 60_000),
    "fashion": (Spec((1, 28, 28), 10), 60_000),
    "tiny": (Spec((3, 64, 64), 200), 100_000),
    "imagenette": (Spec((3, 128, 128), 10), 9_469),
}
"""What a preset's images are and how many there are, so that no dataset has to be at hand."""
PAPERS = {
    "mtt": "1001 epochs of batch 256, 5 networks",
    "datm": "1001 epochs of batch 128",
    "ncfm": "2000 epochs of batch 128, 10 networks",
    "ncfm/tiny_ipc10": "300 epochs of batch 128, 10 networks",
    "ncfm/tiny_ipc50": "40 epochs of batch 128, 10 networks",
}
"""How the papers' own repositories train for a score, where they were read."""
HEAD = ("preset", "images", "epochs", "steps", "networks", "PFLOP", "hours", "in the paper", "published, %")


def scoring_of(run: Run) -> Scoring:
    spec, images = DATASETS[run.data.name]
    train = min(images, run.data.limit or images)
    train -= round(run.data.val if run.data.val >= 1 else run.data.val * train)
    return Scoring.of(run, spec, ledger_size(run, spec), train)


def table(presets: Mapping[str, tuple[Run, str]]) -> str:
    """Markdown, between the marks. Of each preset its run and its published figures."""
    rows = [HEAD, tuple("---" for _ in HEAD)]
    for name, (run, published) in presets.items():
        s = scoring_of(run)
        paper = PAPERS.get(name) or PAPERS.get(name.split("/")[0], "")
        hours = f"{s.operations / RATE / 3600:.2g}"
        sizes = (f"{s.images:,}", f"{s.epochs:,.4g}", f"{s.steps:,} of {s.batch}", f"{s.networks} + {s.controls}")
        rows.append((name, *sizes, f"{s.operations / 1e15:.3g}", hours, paper, published))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([BEGIN, "", *lines, "", END])


def section_of(text: str) -> str:
    """The table that a page holds."""
    return BEGIN + text.split(BEGIN)[1].split(END)[0] + END
