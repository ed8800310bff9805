"""Published settings, shrunken until they take seconds: generated images, narrow networks, two steps, at their true size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from jobs.compose import CONFIGS, ask, options
from jobs.distill import distilled
from jobs.experts import built
from jobs.published import rows, table
from rayd.evaluate.score import RecipeConfig
from rayd.schema import parse, to_dict

SMALL = (
    "data=generated", "data.count=48", "data.val=8", "data.classes=4", "net.width=8", "transform=normalise",
    "expert.experts=2", "expert.per_shard=1", "expert.epochs=2", "expert.batch=24", "expert.compiled=false",
    "expert.precision=fp32", "method.steps=2", "method.compiled=false", "budget={ipc: 2, floats: null}", "scale=inline",
)  # fmt: skip
WINDOW = ("inner_steps=2", "expert_epochs=1", "first=0", "last=2", "grow_from=null", "batch=4", "skip_above=null")
SEGMENTS = tuple(f"method.objective.{word}" for word in WINDOW)
POOL = ("method.objective.batch_real=8", "method.objective.frequencies=16", "method.objective.pool=2")


@pytest.mark.parametrize(
    ("preset", "size"),
    [
        ("mtt/cifar10_ipc1", 32),
        ("mtt/tiny_ipc1", 64),
        ("mtt/imagenet_ipc1", 128),
        ("datm/cifar10_ipc1", 32),
        ("nsd/imagenet_ipc1", 128),
        ("ours/lss_cifar10_ipc1", 32),
        ("haba/imagenet_ipc1", 128),
        ("lodc/tiny_ipc1", 64),
        ("ncfm/imagenet_ipc1", 128),
    ],
)
def test_two_shrunken_steps(preset: str, size: int, tmp_path: Path) -> None:
    own = POOL if preset.startswith("ncfm") else SEGMENTS
    asked = ask("distill", (f"preset={preset}", *SMALL, *own, f"data.size={size}", f"out={tmp_path}"))
    optimiser = replace(asked.run.method.optimiser, lr=0.001)
    asked = replace(asked, run=replace(asked.run, method=replace(asked.run.method, optimiser=optimiser)))
    assert built(asked) == 2
    assert distilled(asked)
    assert not distilled(asked)
    assert (tmp_path / "artifact" / "card.json").is_file()


def test_any_of_the_subsets_takes_the_place_of_the_first() -> None:
    asked = ask("distill", ("preset=nsd/imagenet_ipc1", "data=imagewoof"))
    assert asked.run.data.name == "imagewoof"
    assert asked.run.method.objective.inner_steps == 60


PRESETS = [name for name in options("preset") if "/" in name]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_a_published_row_of_its_method_dataset_and_size(preset: str) -> None:
    family, cell = preset.split("/")
    asked = ask("distill", (f"preset={preset}", "out=/somewhere"))
    if family in ("lodc", "ours"):
        assert asked.published is None, "no published figure is known"
        return
    assert asked.published is not None
    assert (asked.published.method, f"{asked.published.ipc:g}") == (family, cell.split("ipc")[1])
    assert rows(asked.published, asked.run.data.name), "published.csv has no such row"


def test_a_published_figure_follows_the_words() -> None:
    asked = ask("distill", ("preset=nsd/imagenet_ipc1", "data=imagewoof"))
    assert [row.mean for row in rows(asked.published, asked.run.data.name)] == ["35.2"]
    asked = ask("distill", ("preset=mtt/cifar10_ipc1", "budget.ipc=50"))
    assert [row.mean for row in rows(asked.published, "cifar10")] == ["71.6"]
    asked = ask("distill", ("preset=mtt/cifar10_ipc1", "budget.ipc=null", "budget.bytes=30720"))
    assert rows(asked.published, "cifar10") == []
    asked = ask("distill", ("preset=ncfm/cifar10_ipc10",))
    assert {row.regime: row.mean for row in rows(asked.published, "cifar10")}["no psi, hard labels"] == "65.6"


def test_published_figures_are_of_methods_and_datasets_that_are_here() -> None:
    figures = table()
    assert {row.method for row in figures} <= set(options("method"))
    assert {row.data for row in figures} <= set(options("data"))
    assert all(0 < float(row.mean) < 100 and float(row.std or 0) < 5 and row.source and row.regime for row in figures)
    keys = [(row.method, row.data, row.ipc, row.source, row.regime) for row in figures]
    assert len(set(keys)) == len(keys)


def test_the_figures_of_the_full_scale_table_are_those_on_file() -> None:
    text = (CONFIGS.parent / "RESULTS.md").read_text().split("## Full scale")[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "preset=" in line]
    assert len(lines) >= 8
    for _, method, _, _, figure, source, line, _ in lines:
        words = [word for word in line.strip("`").split() if "=" in word]
        asked = ask("pipeline", tuple(words))
        known = [row for row in rows(asked.published, asked.run.data.name) if row.source == source]
        assert any(str(row).startswith(figure.split(" (")[0] + " (") for row in known), (line, figure)
        assert method == asked.published.method


@pytest.mark.parametrize("recipe", options("recipe"))
def test_a_recipe_says_what_differs_and_nothing_else(recipe: str) -> None:
    stated = OmegaConf.to_container(OmegaConf.load(CONFIGS / "recipe" / f"{recipe}.yaml"))
    assert isinstance(stated, dict) and stated.pop("name") == recipe
    plain = to_dict(RecipeConfig())
    assert not [key for key, value in stated.items() if value == plain[key]], "a default"
    assert parse(RecipeConfig, stated).steps > 0


def test_the_table_of_scoring_is_that_of_the_presets() -> None:
    from jobs import presets
    from rayd.studies.plan.presets import DATASETS, section_of

    text = (CONFIGS / "README.md").read_text()
    assert section_of(text) == presets.section(), "python -m jobs.presets writes it"
    assert {ask("plan", (f"preset={name}", "out=nowhere")).run.data.name for name in PRESETS} <= set(DATASETS)
