"""Class-incremental learning with a memory of a fixed number of bytes: what is best kept of classes that will not come back.

Classes come in tasks. Of each task a memory is kept, made while its images are there: real ones (8-bit, random or herded) or
a synthetic set of any codec and objective, of as many bytes as lie in its file. After each task a fresh network is trained
on the memories of all classes seen so far and on nothing else (GDumb, Prabhu et al., ECCV 2020, which DM's authors follow),
and tested on each task so far; its answers are among the classes seen. So accuracy speaks of the memory alone.

Forgetting of a task: the best it ever was at an earlier time, less what it is at the end; the mean over all but the last.

Shapes: N images, K classes, T tasks.
"""

from __future__ import annotations

from rayd.studies.continual.memory import Kept, remember
from rayd.studies.continual.protocol import (
    ContinualConfig,
    ContinualKeys,
    ContinualRun,
    Outcome,
    class_orders,
    forgetting,
    inline,
    live,
    summary,
    units,
)

__all__ = [
    "ContinualConfig",
    "ContinualKeys",
    "ContinualRun",
    "Kept",
    "Outcome",
    "class_orders",
    "forgetting",
    "inline",
    "live",
    "remember",
    "summary",
    "units",
]  # fmt: skip
