"""Search a method's dials at a fixed budget: many short distillations, validated on a share of the training set.

`search.space` names the dials ({rank: [1, 2, 4], method.optimiser.lr: {low: 0.001, high: 0.1, log: true}}), bad trials
stop early, the best is distilled afresh and scored on test once. The same command, again, goes on where it stood.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.compose import Asked, command

if TYPE_CHECKING:
    from rayd.studies.search.trials import TrialRow, TrialTable


KEYS = "rayd.studies.search.space:SearchKeys"


def act(asked: Asked) -> int:
    from rayd.data.load import load
    from rayd.studies.search.outcome import conclude, text, winners
    from rayd.studies.search.page import html
    from rayd.studies.search.trials import TrialTable

    run, config = asked.run, asked.own.search
    book = TrialTable(run, config, load(run.data).train.spec)
    searched(asked, book)
    outcome = conclude(book)
    book.store.write("index.html", html(outcome, book.records()).encode())
    print(text(outcome))
    print(f"rayd: {book.store.where('index.html')}")
    for record in winners(book.records()).values() if config.winner else ():
        again(asked, book, record)
    names = [name for name in book.store.list("method/") if name.endswith(".yaml")]
    for name in names:
        print(f"rayd: {book.store.where(name)}: as configs/method/NAME.yaml it runs with jobs.distill method=NAME")
    return 0


def searched(asked: Asked, book: TrialTable) -> None:
    """The expert buffer once, then every trial that has not ended."""
    from jobs.experts import built
    from rayd.studies.search.points import plan
    from rayd.studies.search.space import experts_for

    config = book.config
    chosen = plan(asked.run, config, book.spec) if config.searcher != "tpe" else None
    trials = {trial.number: trial for trial in chosen.trials} if chosen else {}
    if chosen is not None:
        short = config.trials - len(trials) if config.searcher == "random" else 0
        note = f"; the space holds no more than these {len(trials)}" if short > 0 else ""
        print(f"rayd: {len(trials)} trials, {len(chosen.refused)} points do not fit{note}", file=sys.stderr)
    experts = experts_for(asked.run, config)
    if experts is not None and (chosen is None or set(trials) - book.ended()):
        built(replace(asked, run=experts))
    if asked.run.scale.name != "inline":
        from rayd.fleet.search import search

        search(book, trials)
        return
    inline(book, trials)


def inline(book: TrialTable, trials: dict[int, Any]) -> None:
    from rayd.errors import refuse
    from rayd.studies.search.trials import line, search_inline

    if book.config.searcher == "tpe":
        raise refuse("search.searcher", "tpe", "random | grid under scale=inline", "add scale=laptop")
    for record in search_inline(book, trials):
        print(f"rayd: {line(record)}", file=sys.stderr, flush=True)


def again(asked: Asked, book: TrialTable, record: TrialRow) -> None:
    """The winner under fresh seeds, then the test set, once."""
    from jobs.distill import distilled
    from rayd.studies.search.winner import fresh, tested, tested_there

    for run in fresh(book, record):
        distilled(replace(asked, run=run))
    if asked.run.scale.name == "inline":
        score = tested(book, record)
    else:
        from rayd.fleet.tasks import run_tasks

        (_, score), *_ = run_tasks(book.base, "search", tested_there, [record], book.config)
    print(
        f"rayd: winner at {record.budget} (trial {record.number} of {len(book.records())}), {book.config.winner} fresh "
        f"seeds, {score['steps']} steps: {score['mean']:.4f} +- {score['ci95']:.4f} on test (n={score['n']})"
    )


if __name__ == "__main__":
    sys.exit(command("search", __doc__, act, KEYS))
