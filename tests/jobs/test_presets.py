"""Published settings, shrunken until they take seconds: generated images, narrow networks, two steps, at their true size."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from jobs.compose import CONFIGS, ask, options
from jobs.distill import distilled
from jobs.experts import built
from jobs.published import Row, rows, table
from rayd.config import Run
from rayd.evaluate.score import RecipeConfig
from rayd.schema import parse, to_dict
from rayd.studies.plan.presets import DATASETS

SMALL = (
    "data=generated", "data.count=48", "data.val=8", "data.classes=4", "net.width=8", "transform=normalise",
    "expert.experts=2", "expert.per_shard=1", "expert.epochs=2", "expert.batch=24", "expert.compiled=false",
    "expert.precision=fp32", "method.steps=2", "method.compiled=false", "budget={ipc: 2, floats: null}", "scale=inline",
    "recipe.epochs=4",
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
        pytest.param("nsd/imagenet_ipc1", 128, marks=pytest.mark.slow),
        ("ours/lss_cifar10_ipc1", 32),
        ("haba/imagenet_ipc1", 128),
        ("datm/cifar100_ipc50", 32),
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


SUBSETS = ("imagenette", "imagewoof", "imagefruit", "imageyellow", "imagemeow", "imagesquawk")
WITHOUT_FIGURE = {"haba/imagenet_ipc1", "ncfm/cifar10_ipc1", "ncfm/cifar100_ipc1", "ncfm/imagenet_ipc1"}
CLAUSES: dict[str, Callable[[Run, Row], bool]] = {
    "pixels": lambda run, row: run.method.part_names[0] == "pixel",
    "RGB bases": lambda run, row: run.method.part_names[0] == "haba" and run.method.codec.rank == 3,
    "hard labels": lambda run, row: getattr(run.method.codec, "labels", "hard") == "hard",
    "curated labels": lambda run, row: False,
    "learned labels not counted": lambda run, row: run.method.codec.labels == "soft" and labels_apart(run) == row.ipc,
    "labels of a teacher asked at every step": lambda run, row: run.recipe.labels == "teacher",
    "equal floats": lambda run, row: run.budget.ipc == row.ipc,
    "experts of FTD": lambda run, row: run.expert.sam > 0 and run.expert.epochs == 100,
    "best checkpoint by test accuracy": lambda run, row: run.method.select == "best_val",
    "no augmentation": lambda run, row: run.recipe.augment is None,
    "psi": lambda run, row: run.method.objective.psi is not None,
    "no psi": lambda run, row: run.method.objective.psi is None,
    "ResNet-18": lambda run, row: run.net.name == "resnet18",
    "settings not public": lambda run, row: True,
}
"""What a regime of published.csv says, and whether a run is of it. Nobody's labels are curated here."""


def stored_ipc(run: Run) -> float:
    """The budget in images per class."""
    spec, _ = DATASETS[run.data.name]
    return run.budget.ipc or (run.budget.floats or 0) / (spec.classes * spec.floats)


def labels_apart(run: Run) -> float:
    """The budget in images per class, each with the logits of its label, beside a step size."""
    spec, _ = DATASETS[run.data.name]
    return ((run.budget.floats or 0) - 1) / (spec.classes * (spec.floats + spec.classes))


def of_its_regime(run: Run, row: Row) -> bool:
    own = re.fullmatch(r"(.*, )?own storage (?:about )?([\d.]+) IPC", row.regime)
    if own is not None and abs(stored_ipc(run) - float(own[2])) > 0.01:
        return False
    clauses = row.regime.split(", ")[: -1 if own else None]
    return all(CLAUSES[clause](run, row) for clause in clauses)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_the_published_rows_of_its_own_regime_and_no_others(preset: str) -> None:
    family, cell = preset.split("/")
    asked = ask("distill", (f"preset={preset}", "out=/somewhere"))
    ipc = float(cell.split("ipc")[1].removesuffix("_published"))
    datasets = SUBSETS if asked.run.data.name == "imagenette" else (asked.run.data.name,)
    method = asked.run.method.part_names[0] if family in ("lodc", "ours") else family
    comparable = [row for row in table() if (row.method, row.ipc) == (method, ipc) and of_its_regime(asked.run, row)]
    named = [row for name in datasets for row in rows(asked.published, name)]
    assert sorted(named, key=str) == sorted((row for row in comparable if row.data in datasets), key=str)
    assert bool(named) == (family not in ("lodc", "ours") and preset not in WITHOUT_FIGURE)


def test_presets_of_papers_choose_on_a_thousand_images() -> None:
    for preset in PRESETS:
        run = ask("distill", (f"preset={preset}", "out=/somewhere")).run
        assert run.data.val == 1000 and 0 < run.method.validate <= 2000, preset
        assert run.method.select == ("last" if preset.startswith("ncfm") else "best_val"), preset
        assert run.expert.precision == run.method.precision == "fp32", preset
        assert run.recipe.epochs, preset


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
    assert len((CONFIGS.parent / "RESULTS.md").read_text().splitlines()) <= 200, "a page to be read in five minutes"
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
    assert parse(RecipeConfig, stated).length(10, 10).steps > 0


def test_the_table_of_scoring_is_that_of_the_presets() -> None:
    from jobs import presets
    from rayd.studies.plan.presets import section_of

    text = (CONFIGS / "README.md").read_text()
    assert section_of(text) == presets.section(), "python -m jobs.presets writes it"
    assert {ask("plan", (f"preset={name}", "out=nowhere")).run.data.name for name in PRESETS} <= set(DATASETS)
