"""The ledger: a float is a number in the file, and a byte is a byte of it."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file

from rayd.data.images import Spec
from rayd.distill.budget import Budget, Ledger, Stored, packed, unpacked
from rayd.distill.storage import pack, pack_shape, unpack
from rayd.errors import Refused

LEGACY = ("fp32", "fp16", "bf16", "int8")
"""Storages of the first format: a file holds their numbers one by one."""
CIFAR = Spec((3, 32, 32), 10)


def some_stored(storage: str) -> dict[str, Stored]:
    rng = torch.Generator().manual_seed(0)
    return {
        "core": Stored(torch.randn(4, 3, 5, generator=rng), "factors", storage),
        "labels": Stored(torch.randn(4, 10, generator=rng), "labels", storage),
        "enc": Stored(torch.randn(7, generator=rng), "decoder", storage),
        "step_size": Stored(torch.tensor([0.01]), "step"),
        "zca": Stored(torch.randn(9, 9, generator=rng), "transform"),
    }


@pytest.mark.parametrize("storage", LEGACY)
@pytest.mark.parametrize("meta", [None, {"name": 'a "quoted" é', "n": "1"}])
def test_floats_and_bytes_are_those_of_the_file(storage, meta, tmp_path):
    stored = some_stored(storage)
    file = packed(stored)
    save_file(file, tmp_path / "x.safetensors", metadata=meta)
    ledger = Ledger.of(stored, meta)
    assert ledger.floats == sum(t.numel() for t in file.values())
    assert ledger.bytes == (tmp_path / "x.safetensors").stat().st_size
    assert ledger.beside_floats == 81
    assert {row.role for row in ledger.beside} == {"transform"}
    assert ledger.json()["by_role"]["step"] == 1


@pytest.mark.parametrize("storage", LEGACY)
def test_packing_again_changes_nothing(storage):
    tensor = torch.randn(20, 30, generator=torch.Generator().manual_seed(1)) * torch.logspace(-8, 4, 20)[:, None]
    tensor[3] = 0
    once = unpack(pack(tensor, storage))
    assert torch.equal(once, unpack(pack(once, storage)))
    if storage != "fp16":  # whose smallest numbers fade
        bound = {"fp32": 0, "bf16": 2**-8, "int8": 0.5 / 126}[storage]
        assert ((once - tensor).abs() <= bound * tensor.abs().amax(1, keepdim=True)).all()
    assert {k: (tuple(v.shape), v.dtype) for k, v in pack(tensor, storage).items()} == pack_shape((20, 30), storage)


def test_unpacked_needs_only_the_file():
    stored = some_stored("int8")
    back = unpacked(packed(stored))
    assert set(back) == set(stored) - {"zca"}
    assert all(back[name].dtype == torch.float32 for name in back)
    assert torch.equal(back["step_size"], stored["step_size"].tensor)


def test_values_too_large_for_a_type_are_clipped_not_infinite():
    assert torch.isfinite(unpack(pack(torch.tensor([1e9, -1e9]), "fp16"))).all()


def test_integers_are_kept():
    pixels = torch.arange(12, dtype=torch.uint8).view(3, 4)
    assert torch.equal(unpack(pack(pixels, "int8")), pixels)


def test_limits():
    assert Budget(ipc=1).limit(CIFAR) == 30720 + 1, "as the papers count, the step size comes on top"
    assert Budget(floats=1000).limit(CIFAR) == 1000
    assert Budget(bytes=4000).limit(CIFAR, "fp16") == 2000
    shapes = {"pixels": ((10, 3, 32, 32), "pixels")}
    assert Budget(ipc=1).holds(shapes, CIFAR)
    assert not Budget(floats=30720).holds(shapes, CIFAR), "floats mean floats: the step size has no place"
    assert not Budget(ipc=1).holds(shapes, CIFAR, "int8"), "the scales count"


@pytest.mark.parametrize("storage", LEGACY)
def test_a_budget_in_bytes_is_the_file_on_disk(storage, tmp_path):
    stored = {
        "pixels": Stored(torch.zeros(10, 3, 32, 32), "pixels", storage),
        "step_size": Stored(torch.ones(1), "step"),
    }
    shapes = {"pixels": ((10, 3, 32, 32), "pixels")}
    size = Ledger.of(stored).bytes
    assert Budget(bytes=size).used(shapes, CIFAR, storage) == 1
    assert not Budget(bytes=size - 1).holds(shapes, CIFAR, storage)


@pytest.mark.parametrize("given", [{}, {"ipc": 1, "floats": 3}, {"bytes": 0}, {"ipc": -1}])
def test_refused(given):
    with pytest.raises(Refused, match="budget"):
        Budget(**given)


def test_unknown_role_and_type_are_refused():
    with pytest.raises(Refused, match="role"):
        Stored(torch.zeros(1), "pictures")
    with pytest.raises(Refused, match="storage"):
        pack(torch.zeros(1), "fp4")


def test_equivalent_images_per_class():
    haba = {"bases": (10, 3, 32, 32), "hallucinators": (5, 5568)}
    ledger = Ledger.of({name: Stored(torch.zeros(shape), "factors") for name, shape in haba.items()})
    assert math.isclose(ledger.ipc(CIFAR), 1.906, abs_tol=5e-4)
