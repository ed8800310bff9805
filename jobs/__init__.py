"""One entry a verb: compose the run, call its stage, end with an exit code.

doctor, check, prepare, plan, experts, distill, evaluate, report, export are stages, and pipeline is several of them; search,
continual, theory and bench are the studies; submit sends one to a cluster, watch looks at a run while it goes on.

compose    from a command line to a Run; the door to Hydra
help       --help and --cfg
console    the line of progress
presets    the table of presets in configs/README.md
published  the accuracies of configs/published.csv
zoo        the index of the finished sets in artifacts/
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayd.config import Run

INLINE = {
    "experts": "rayd.run.experts",
    "distill": "rayd.run.distill",
    "plan": "rayd.studies.plan",
    "prepare": "rayd.data.prepare",
}


def stage(verb: str, run: Run) -> Any:
    """The module that does a verb: in this process under scale=inline, else on Ray, under the same names."""
    return import_module(INLINE[verb] if run.scale.name == "inline" else f"rayd.fleet.{verb}")
