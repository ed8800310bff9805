"""One entry a verb: compose the run, call its stage, end with an exit code.

doctor, check, prepare, plan, experts, distill, evaluate, report, export are stages, and pipeline is several of them; search,
auto, continual, theory and bench are the studies; submit sends one to a cluster, watch looks at a run while it goes on; new
writes a method to begin with.

compose    from a command line to a Run; the door to Hydra
help       --help and --cfg
console    the line of progress
presets    the table of presets in configs/README.md
published  the accuracies of configs/published.csv
zoo        the index of the finished sets in artifacts/
"""

from __future__ import annotations

from rayd.api.work import stage as stage

VERBS = (
    "doctor", "check", "prepare", "plan", "experts", "distill", "evaluate", "report", "export", "pipeline", "submit",
    "watch", "search", "auto", "continual", "theory", "bench", "new",
)  # fmt: skip
"""What `rayd VERB` runs."""


def program(verb: str) -> str:
    """The command of a verb, as it is typed here: in a wheel this package is `rayd.jobs`."""
    return f"python -m jobs.{verb}" if __name__ == "jobs" else f"rayd {verb}"
