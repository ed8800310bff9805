"""The winner of each budget as a method of its own: a file for configs/method/, fresh runs, a look at the test set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rayd.config import Run
from rayd.data.load import load as load_data
from rayd.numbers import summary
from rayd.schema import parse, to_dict
from rayd.seeds import seed_of
from rayd.studies.search.space import SearchConfig, run_of
from rayd.studies.search.trials import TrialRow, TrialTable, scored


def method_of(base: Run, config: SearchConfig, record: TrialRow) -> dict[str, Any]:
    """The winner's sentence, to be run for the base method's own steps and validated as it is."""
    sentence = to_dict(run_of(base, config, record.point).method)
    return {**sentence, **{key: getattr(base.method, key) for key in ("steps", "validate", "checkpoint", "select")}}


def method_text(base: Run, config: SearchConfig, record: TrialRow, tried: int) -> str:
    """A file for configs/method/."""
    value = "unscored" if record.accuracy is None else f"{record.accuracy:.4f}"
    score = f"{value} on the validation split (n={record.n}, {config.steps} steps)"
    head = (
        f"# Found by jobs.search: trial {record.number}, the best of {tried} tried at {record.budget}: {score}.\n"
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
            items = [yaml_text(item, indent + 4) for item in value]
            lines.append(f"{pad}{key}:\n" + "".join(f"{pad}  - {text.lstrip()}" for text in items))
        else:
            lines.append(f"{pad}{key}: {json.dumps(value)}\n")
    return "".join(lines)


def name_of(budget: str) -> str:
    return f"winner-{budget.replace(' ', '-')}"


def fresh(table: TrialTable, record: TrialRow) -> list[Run]:
    """The winner under seeds that no trial had, for the base method's own steps."""
    base, config = table.base, table.config
    plain = {**to_dict(run_of(base, config, record.point)), "method": method_of(base, config, record)}
    folder = table.store.sub(f"winners/{name_of(record.budget)}").uri
    run = parse(Run, plain)
    return [replace(run, seed=seed_of(base.seed, "winner", i), out=f"{folder}/seed-{i}") for i in range(config.winner)]


def tested(table: TrialTable, record: TrialRow) -> dict[str, Any]:
    """The fresh artifacts on the test set, which is read once: the result is kept."""
    name = f"winners/{name_of(record.budget)}/test.json"
    if table.store.exists(name):
        return dict(table.store.read_json(name))
    means, scores = scored(fresh(table, record), "test", "test")
    result = summary([score.accuracy for score in scores]) | {
        "by_seed": means,
        "trial": record.number,
        "steps": table.base.method.steps,
    }
    table.store.write_json(name, result)
    return result


def tested_there(base: Run, config: SearchConfig, record: TrialRow) -> dict[str, Any]:
    """As `tested`, from what travels to a task."""
    return tested(TrialTable(base, config, load_data(base.data).train.spec), record)
