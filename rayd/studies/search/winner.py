"""The winner of each budget as a method of its own: a file for configs/method/, fresh runs, a look at the test set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rayd import load
from rayd.config import Run
from rayd.evaluate.batches import ImageSet
from rayd.evaluate.score import Score, evaluate
from rayd.run.assemble import surroundings
from rayd.run.distill import default_device
from rayd.schema import parse, to_dict
from rayd.seeds import seed_of
from rayd.stats import summary
from rayd.studies.search.space import SearchConfig, run_of
from rayd.studies.search.trials import TrialRow, TrialTable


def method_of(base: Run, config: SearchConfig, record: TrialRow) -> dict[str, Any]:
    """The winner's sentence, to be run for the base method's own steps and validated as it is."""
    plain = dict(to_dict(run_of(base, config, record.point).method))
    own = base.method
    return {**plain, "steps": own.steps, "validate": own.validate, "checkpoint": own.checkpoint, "select": own.select}


def method_text(base: Run, config: SearchConfig, record: TrialRow, tried: int) -> str:
    """A file for configs/method/."""
    value = "unscored" if record.accuracy is None else f"{record.accuracy:.4f}"
    told = f"{value} on the validation split (n={record.n}, {config.steps} steps)"
    head = (
        f"# Found by jobs.search: trial {record.number}, the best of {tried} tried at {record.budget}: {told}.\n"
        "# Of the best of many trials the validation figure is too high; the test set has not seen it.\n"
    )
    return head + yaml_text(method_of(base, config, record))


def yaml_text(mapping: Mapping[str, Any], indent: int = 0) -> str:
    """Block style, scalars as JSON, which is YAML."""
    lines = []
    for key, value in mapping.items():
        pad = " " * indent
        if isinstance(value, Mapping) and value:
            lines.append(f"{pad}{key}:\n{yaml_text(value, indent + 2)}")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            items = [yaml_text(one, indent + 4) for one in value]
            lines.append(f"{pad}{key}:\n" + "".join(f"{pad}  - {text.lstrip()}" for text in items))
        else:
            lines.append(f"{pad}{key}: {json.dumps(value)}\n")
    return "".join(lines)


def name_of(budget: str) -> str:
    return f"winner-{budget.replace(' ', '-')}"


def fresh(book: TrialTable, record: TrialRow) -> list[Run]:
    """The winner under seeds that no trial had, for the base method's own steps."""
    base, config = book.base, book.config
    chosen = run_of(base, config, record.point)
    plain = {**to_dict(chosen), "method": method_of(base, config, record)}
    place = book.store.sub(f"winners/{name_of(record.budget)}").uri
    run = parse(Run, plain)
    return [replace(run, seed=seed_of(base.seed, "winner", i), out=f"{place}/seed-{i}") for i in range(config.winner)]


def tested(book: TrialTable, record: TrialRow) -> dict[str, Any]:
    """The fresh artifacts on the test set: looked at once, and kept."""
    name = f"winners/{name_of(record.budget)}/test.json"
    if book.store.exists(name):
        return dict(book.store.read_json(name))
    splits, transform, net = surroundings(book.base)
    recipe, scores = book.base.recipe, list[Score]()
    means = []
    for run in fresh(book, record):
        artifact = load(run.at("artifact"))
        seeds = [seed_of(run.seed, "test", i) for i in range(recipe.seeds)]
        own = evaluate(recipe, net, ImageSet.of(artifact.codec), splits.test, transform, seeds, device=default_device(),
                       step_size=artifact.step_size, compile=run.method.compiled)  # fmt: skip
        means.append(summary([score.accuracy for score in own])["mean"])
        scores += own
    told = summary([score.accuracy for score in scores]) | {
        "by_seed": means,
        "trial": record.number,
        "steps": book.base.method.steps,
    }
    book.store.write_json(name, told)
    return told
