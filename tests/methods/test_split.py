"""One segment on several workers: the images of its inner batches are shared out, and P numbers summed each way."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rayd.data.augment import AugmentConfig
from rayd.distill.budget import Budget
from rayd.distill.loop import Distillation, OptimiserConfig
from rayd.errors import Refused
from rayd.methods import CODECS, TERMS
from rayd.methods.mtt import Mtt
from rayd.nets.convnet import NetConfig
from rayd.run.distill import Worker, share_items
from rayd.seeds import generator
from tests.support.workers import Meeting
from tests.support.worlds import TinyWorld

STEPS, INNER = 3, 4
INPUTS = TinyWorld(experts=4)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "pixels": ({"name": "pixel"}, {}, []),
    "learned labels, micro-batches": ({"name": "pixel", "labels": "soft"}, {"micro": 2}, []),
    "TESLA": ({"name": "pixel"}, {"gradient": "tesla"}, []),
    "LoDC": ({"name": "lodc", "rank": 2}, {}, []),
    "two segments": ({"name": "pixel"}, {"items": 2}, []),
    "HaBa and its contrast": ({"name": "haba"}, {"batch": 4}, ["contrast"]),
}


def make(case: str, rank: int, size: int, meeting: Meeting, inputs: TinyWorld = INPUTS) -> Distillation:
    named, options, terms = CASES[case]
    name, rest = named["name"], {key: value for key, value in named.items() if key != "name"}
    budget = Budget(ipc=8 if name == "haba" else 3)
    codec = CODECS[name].Config(**rest).fit(budget, inputs.spec).build(inputs.spec, generator(0, "codec"))
    codec.encode(inputs.take, generator(0, "encode"))
    plain = {"batch": 8, "inner_steps": INNER, "expert_epochs": 1, "last": 2, "augment": AugmentConfig(), **options}
    objective = Mtt.Config(**plain, step_size=0.05, lr_step=1e-3).build(inputs)
    share_items(objective, Worker(rank, size, meeting.reduce(rank), meeting.group(rank)))
    added = [TERMS[term].Config().build(inputs, codec) for term in terms]
    run = OptimiserConfig(name="sgd", lr=0.5)
    return Distillation(
        codec,
        objective,
        added,
        steps=STEPS,
        optimiser=run,
        inputs=inputs,
        share=(rank, size),
        reduce=meeting.reduce(rank),
    )


def learned(case: str, size: int) -> tuple[dict[str, Tensor], list[float], Meeting]:
    """What worker 0 holds after all steps, their losses, and who met."""
    meeting = Meeting(size)
    works = [make(case, rank, size, meeting) for rank in range(size)]
    losses: dict[int, list[float]] = {}
    threads = [
        threading.Thread(target=lambda r=rank: losses.update({r: [step.value for step in works[r].run()]}))
        for rank in range(size)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states = [{k: v for k, v in work.state().items() if v.is_floating_point()} for work in works]
    for other in states[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in states[0].items()), "all workers hold the same"
    return states[0], losses[0], meeting


@pytest.mark.parametrize("case", CASES)
def test_several_workers_take_the_step_of_one(case: str) -> None:
    alone, losses, _ = learned(case, 1)
    for size in (2, 3):
        shared, their_losses, _ = learned(case, size)
        assert their_losses == pytest.approx(losses, rel=1e-5)
        for name, tensor in alone.items():
            gap = (shared[name] - tensor).norm() / tensor.norm().clamp(min=1e-12)
            assert gap < 1e-5, f"{size} workers, {name}: relative difference {gap:.1e}"


def test_the_bytes_are_those_of_the_formula() -> None:
    """4 bytes of P numbers: once an inner step forward, and once backward but for the first step, whose start is given."""
    for case, passes in (("pixels", 2 * INNER - 1), ("TESLA", INNER)):
        _, _, meeting = learned(case, 2)
        (group,) = meeting.groups.values()
        assert group.total == STEPS * passes * 4 * INPUTS.net.size


def test_each_worker_decodes_its_own_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    decode = CODECS["pixel"].decode
    monkeypatch.setattr(CODECS["pixel"], "decode", lambda self, index: seen.append(len(index)) or decode(self, index))
    learned("pixels", 3)
    assert sorted(set(seen)) == [2, 3], "eight images in three parts"


def test_what_cannot_be_shared_is_refused() -> None:
    meeting = Meeting(9)
    with pytest.raises(Refused, match=r"scale\.workers=9: allowed is at most the 8 images"):
        work = make("pixels", 0, 9, meeting)
        item = work.objective.plan(0)[0]
        work.objective(work.codec, item, work.objective.fetch(item))
    normed = replace(INPUTS, config=NetConfig(depth=2, width=8, norm="batch"))
    with pytest.raises(Refused, match=r"net\.norm=batch.*method\.objective\.items"):
        make("pixels", 0, 2, meeting, normed)
