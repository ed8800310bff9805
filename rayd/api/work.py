"""A stage of a run under way, with its bar; the stages themselves, for the verbs in Python and for the jobs."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rayd.errors import require

if TYPE_CHECKING:
    from rayd.config import Run
    from rayd.distill.loop import Step
    from rayd.run.progress import Progress

S = TypeVar("S")
R = TypeVar("R")
INLINE = {
    "experts": "rayd.run.experts",
    "distill": "rayd.run.distill",
    "plan": "rayd.studies.plan",
    "prepare": "rayd.data.prepare",
}


def stage(verb: str, run: Run) -> Any:
    """The module that does a verb: in this process under scale=inline, else on Ray, under the same names."""
    if run.scale.name != "inline":
        require("fleet", f"scale={run.scale.name}")
    return import_module(INLINE[verb] if run.scale.name == "inline" else f"rayd.fleet.{verb}")


@dataclass(frozen=True)
class Phase(Generic[S]):
    """A part of the work, with a bar of its own."""

    what: str
    items: Iterable[S]
    total: int
    yields: bool = True
    """Whether whoever iterates sees its items."""


class Work(Generic[S, R]):
    """A stage under way: iterate over it for its steps, or ask for its `result()`, which takes the steps that are left.

    >>> import rayd
    >>> work = rayd.run("smoke", out="runs/work", method={"steps": 2})
    >>> [step.number for step in work], work.result().classes[:2]
    ([1, 2], ('0', '1'))
    """

    def __init__(self, config: Run, phases: Sequence[Phase[S]], result: Any, progress: bool | None = None) -> None:
        self.config = config
        self._result, self._progress = result, progress
        self._items = self._run(phases)

    def __iter__(self) -> Generator[S, None, R]:
        yield from self._items
        return self.result()

    def result(self) -> R:
        """What the work comes to: an artifact, or where the experts are."""
        for _ in self._items:
            pass
        value: R = self._result()
        return value

    def _run(self, phases: Sequence[Phase[S]]) -> Iterator[S]:
        for phase in phases:
            with bar(phase.what, phase.total, self._progress) as shown:
                for item in phase.items:
                    shown.update(_count(item) - shown.n)
                    loss = getattr(item, "value", None)
                    shown.set_postfix_str(f"loss {loss:.4f}" if loss is not None else "", refresh=False)
                    if phase.yields:
                        yield item


def _count(item: Any) -> int:
    """Steps, or experts, done so far."""
    return int(item.number if hasattr(item, "number") else item.skipped + item.done)


def bar(what: str, total: int, progress: bool | None) -> Any:
    """A bar of tqdm: in a notebook its own, in a terminal a line. None: shown where somebody looks."""
    from tqdm.auto import tqdm

    seen = sys.stderr.isatty() or "ipykernel" in sys.modules if progress is None else progress
    return tqdm(total=total, desc=what, disable=not seen)


def trained(run: Run) -> Iterator[Progress]:
    """The experts of a run that are missing."""
    from rayd.run.experts import ExpertPlan

    yield from stage("experts", run).build(ExpertPlan.open(run))


def distilled(run: Run) -> Iterator[Step]:
    """The steps of a distillation that are left; none where its artifact is there."""
    from rayd.run.distill import finished
    from rayd.store import Store

    if not finished(run, Store(run.out)):
        yield from stage("distill", run).distill(run)


def scored(run: Run, at: str, controls: bool | Sequence[str] = True) -> bool:
    """Score an artifact beside its controls; false where its card holds this recipe's table already."""
    from rayd.machine import use_threads
    from rayd.run.cost import keep
    from rayd.run.evaluate import is_scored, rows_asked, score
    from rayd.store import Store, configure

    use_threads(run.scale.threads)
    configure(run.store)
    rows = rows_asked(controls, run.own.controls)
    if is_scored(run, at, rows):
        return False
    if run.scale.name == "inline":
        score(run, at, rows)
    else:
        require("fleet", f"scale={run.scale.name}")
        score(run, at, rows, import_module("rayd.fleet.tasks").run_tasks)
    keep(run, Store(at))
    return True
