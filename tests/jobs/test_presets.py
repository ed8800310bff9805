"""Published settings, shrunken until they take seconds: generated images, narrow networks, two steps, at their true size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.compose import ask
from jobs.distill import distilled
from jobs.experts import built

SMALL = (
    *("data=generated", "data.count=48", "data.val=8", "data.classes=4", "net.width=8", "transform=normalise"),
    *("expert.experts=2", "expert.per_shard=1", "expert.epochs=2", "expert.batch=24", "expert.compiled=false"),
    *(
        "expert.precision=fp32",
        "method.steps=2",
        "method.compiled=false",
        "budget={ipc: 2, floats: null}",
        "scale=inline",
    ),
)
SEGMENTS = tuple(
    f"method.objective.{word}"
    for word in (
        "inner_steps=2",
        "expert_epochs=1",
        "first=0",
        "last=2",
        "grow_from=null",
        "batch=4",
        "skip_above=null",
    )
)
POOL = ("method.objective.batch_real=8", "method.objective.frequencies=16", "method.objective.pool=2")


@pytest.mark.parametrize(
    ("preset", "size"),
    [
        ("mtt/cifar10_ipc1", 32),
        ("mtt/tiny_ipc1", 64),
        ("mtt/imagenet_ipc1", 128),
        ("datm/cifar10_ipc1", 32),
        ("nsd/imagenet_ipc1", 128),
        ("lss/imagenet_ipc1", 128),
        ("haba/imagenet_ipc1", 128),
        ("lodc/imagenet_ipc1", 128),
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
