"""Distilling through the storage: what is matched is what the file holds, and what moves lies behind it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rayd.data.augment import AugmentConfig
from rayd.distill.budget import Budget, packed, unpacked
from rayd.distill.contract import OptimiserConfig
from rayd.distill.loop import Distillation
from rayd.distill.storage import rounded
from rayd.methods.lodc import Lodc
from rayd.methods.mtt import Mtt
from rayd.nets.convnet import NetConfig
from rayd.seeds import generator
from tests.support.worlds import TinyWorld

STORAGE = "int3"


class Seen(Mtt):
    """Keeps the codec's numbers at each of its calls."""

    def __init__(self, config: Mtt.Config, inputs: TinyWorld) -> None:
        super().__init__(config, inputs)
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, codec: Any, item: Any, data: Any) -> Any:
        self.seen.append({name: number.tensor.detach().clone() for name, number in codec.stored().items()})
        return super().forward(codec, item, data)


def make(through: int | None, steps: int = 6, ema: float = 0.0) -> Distillation:
    inputs = TinyWorld(classes=3, config=NetConfig(depth=2, width=4), last_epoch=4)
    config = Lodc.Config(storage=STORAGE, labels="soft").fit(Budget(ipc=2.1), inputs.spec)
    codec = config.build(inputs.spec, generator(0, "codec"))
    objective = Seen(Mtt.Config(inner_steps=2, batch=4, last=2, items=2, augment=AugmentConfig(ops=("flip",))), inputs)
    optimiser = OptimiserConfig(lr=0.05)
    return Distillation(codec, objective, [], steps=steps, optimiser=optimiser, inputs=inputs, ema=ema, through=through)


def numbers(work: Distillation) -> list[Tensor]:
    return [p.detach().clone() for p in work.codec.parameters()]


def is_stored(values: dict[str, Tensor], work: Distillation) -> bool:
    return all(torch.equal(rounded(values[n], one.storage), values[n]) for n, one in work.codec.stored().items())


def test_the_objective_sees_stored_numbers_from_that_step_on() -> None:
    work = make(through=3)
    list(work.run())
    assert isinstance(work.objective, Seen)
    assert [is_stored(values, work) for values in work.objective.seen] == [False] * 6 + [True] * 6
    assert not is_stored({name: one.tensor for name, one in work.codec.stored().items()}, work), "what moves is behind"


def test_the_gradient_is_that_at_the_stored_numbers() -> None:
    through, plain = make(through=0, steps=1), make(through=None, steps=1)
    before = numbers(through)
    plain.codec.quantise()
    held = numbers(plain)
    list(through.run())
    list(plain.run())
    for was, now, start, moved in zip(before, numbers(through), held, numbers(plain), strict=True):
        assert torch.allclose(now - was, moved - start, atol=1e-6), "the same step, from the numbers behind"


def test_afterwards_is_another_result_and_never_is_the_plain_one() -> None:
    never, late, always = (make(through=through) for through in (None, 6, 0))
    for work in (never, late, always):
        list(work.run())
    assert all(torch.equal(a, b) for a, b in zip(numbers(never), numbers(late), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(numbers(never), numbers(always), strict=True))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resumed_it_ends_like_an_uninterrupted_one(ema: float) -> None:
    whole, first, second = make(0, ema=ema), make(0, ema=ema), make(0, ema=ema)
    list(whole.run())
    for step in first.run():
        if step.number == 3:
            break
    second.load(first.state())
    list(second.run())
    assert all(torch.equal(a, b) for a, b in zip(numbers(whole), numbers(second), strict=True))
    one, two = (packed(work.averaged().stored()) for work in (whole, second))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert set(unpacked(one)) == set(whole.codec.stored())
