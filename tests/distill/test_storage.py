"""Numbers of two to eight bits: exact bytes, exact reading, and a set that is distilled through them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rayd.data.images import Spec
from rayd.distill.budget import Budget, Ledger, Stored, packed, to_bytes, unpacked
from rayd.distill.storage import BITS, FORM, Storage, count, pack, pack_shape, rounded, unpack
from rayd.errors import Refused
from rayd.methods.lodc import Lodc
from rayd.methods.lss import Lss
from rayd.methods.nsd import Nsd
from rayd.methods.pixel import Pixel

EVERY = [f"{kind}.{scales}{coder}" for kind in BITS for scales in ("row", "column", "tensor", "group64", "group7")
         for coder in ("", ".zlib")]  # fmt: skip
SHAPES = [(20, 30), (70, 3, 5, 4), (3, 1, 2), (1, 1), (5, 7, 64)]


def numbers(shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-3, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return torch.randn(shape, generator=rng) * spread


@pytest.mark.parametrize("storage", EVERY)
def test_what_is_read_is_what_was_rounded_and_packs_to_the_same_bytes(storage):
    for shape in SHAPES:
        tensor = numbers(shape)
        parts = pack(tensor, storage)
        read = unpack(parts)
        assert read.shape == shape and torch.equal(read, rounded(tensor, storage))
        assert torch.equal(rounded(read, storage), read)
        again = pack(read, storage)
        assert list(again) == list(parts) and all(torch.equal(again[key], part) for key, part in parts.items())
        sizes = {key: (tuple(part.shape), part.dtype) for key, part in parts.items()}
        if not storage.endswith("zlib"):
            assert sizes == pack_shape(shape, storage)
        assert parts[""].numel() <= pack_shape(shape, storage)[""][0][0] or storage.startswith("int8.row")
        assert count(shape, storage) >= tensor.numel()


@pytest.mark.parametrize("kind", BITS)
def test_more_bits_are_nearer_and_none_is_further_than_its_grid_allows(kind):
    tensor = torch.randn(8, 500, generator=torch.Generator().manual_seed(1))
    gap = (rounded(tensor, f"{kind}.row") - tensor).square().mean().sqrt()
    uniform = {"int2": 0.4, "int3": 0.2, "int4": 0.13, "int6": 0.04, "int8": 0.01}[kind]
    assert float(gap) < uniform


def test_a_scale_for_each_column_keeps_columns_of_unequal_size():
    """Frequencies: the low ones are a thousand times the high ones."""
    tensor = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * torch.logspace(0, -3, 64).view(
        8, 8
    )

    def relative(storage):
        return float(((rounded(tensor, storage) - tensor).square() / tensor.square().mean((0, 1))).mean())

    assert relative("int4.column") < 0.05 * relative("int4.row")


def test_zeros_stay_zeros():
    for storage in EVERY:
        assert torch.equal(rounded(torch.zeros(3, 70), storage), torch.zeros(3, 70))


def test_the_coder_is_used_where_it_saves_and_left_where_it_does_not():
    rng = torch.Generator().manual_seed(3)
    sparse = torch.randn(40, 400, generator=rng) * (torch.rand(40, 400, generator=rng) < 0.05)
    assert pack(sparse, "int8.tensor.zlib")[""].numel() < 0.5 * sparse.numel()
    flat = torch.rand(40, 400, generator=rng) - 0.5
    assert pack(flat, "int8.tensor.zlib")[""].numel() == flat.numel() and not pack(flat, "int8.tensor.zlib")[FORM][3]


@pytest.mark.parametrize("wrong", ["int5", "int4.rows", "fp16.row", "int4.group0", "int4.zlib.row", "fp32.zlib", ""])
def test_an_unknown_storage_is_refused(wrong):
    with pytest.raises(Refused, match=r"storage.*int2"):
        Storage.parse(wrong)


def test_the_straight_gradient_is_the_slope_of_the_smoothed_quantiser():
    """Averaged over where the grid lies, rounding is the identity: its finite difference is one."""
    rng = torch.Generator().manual_seed(4)
    anchors = torch.tensor([8.0, -8.0])
    inner = torch.rand(20000, generator=rng) * 12 - 6
    step = 0.5

    def stored(x):
        return rounded(torch.cat([anchors, x])[None], "int4.row")[0, 2:]

    slope = (stored(inner + step) - stored(inner - step)).mean() / (2 * step)
    assert float(slope) == pytest.approx(1, abs=0.05)


SPECS = (Spec((3, 32, 32), 10), Spec((3, 64, 64), 10), Spec((1, 28, 28), 10))


def test_200_random_configurations_fill_their_budget_in_bytes_and_never_exceed_it():
    rng = torch.Generator().manual_seed(5)

    def pick(choices):
        return choices[int(torch.randint(len(choices), (), generator=rng))]

    refused = 0
    for trial in range(200):
        spec, family = pick(SPECS), pick((Nsd, Lss, Lodc, Pixel))
        rank = None if family is Pixel else pick((None, 2, 4, 6))
        sharing = pick((None, 4, 16)) if family in (Nsd, Lss) else None
        storage, scales = pick(tuple(BITS)), pick((None, "row", "column", "group", "tensor"))
        config = family.Config(rank=rank, sharing=sharing, storage=storage, scales=scales, coder=pick(("none", "zlib")))
        config = replace(config, labels=pick(("hard", "soft")))
        budget = Budget(bytes=int(30_000 * 10 ** float(torch.rand((), generator=rng))))
        try:
            config = config.fit(budget, spec)
        except Refused as refusal:
            assert "one image per class is the least" in str(refusal)
            refused += 1
            continue
        codec = config.build(spec, torch.Generator().manual_seed(trial))
        stored = codec.stored() | {"step_size": Stored(torch.ones(1), "step")}
        size = len(to_bytes(packed(stored)))
        assert size == Ledger.of(stored).bytes <= budget.bytes
        if config.coder == "none":
            assert size / budget.bytes == pytest.approx(config.fill(budget, spec))
        one_more = replace(config, images=config.images + 1) if family is Pixel else config
        assert config.fill(budget, spec) >= 0.97 or (family is Pixel and not one_more.within(budget, spec)), (
            config.describe(budget, spec),
            storage,
            scales,
        )
    assert refused < 40


@pytest.mark.parametrize("storage", BITS)
def test_a_codec_holds_what_its_file_holds(storage):
    spec = SPECS[0]
    codec = Nsd.Config(storage=storage, labels="soft").fit(Budget(bytes=40_000), spec).build(spec, torch.Generator())
    read = unpacked(packed(codec.stored()))
    codec.quantise()
    assert all(torch.equal(read[name], one.tensor) for name, one in codec.stored().items())
