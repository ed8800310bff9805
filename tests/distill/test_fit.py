"""How a codec fits into a budget, cell by cell."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rayd.distill.budget import Budget, Ledger, Stored
from rayd.distill.fit import CodecOptions
from rayd.distill.storage import TYPES
from rayd.errors import Refused
from rayd.methods.haba import Haba
from rayd.methods.idc import Formation
from rayd.methods.lodc import Lodc
from rayd.methods.lss import Lss
from rayd.methods.nsd import Nsd
from rayd.methods.pixel import Pixel
from rayd.schema import parse, to_dict
from tests.support.codecs import CELLS, CONFIGS, SPEC, built


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", CONFIGS)
def test_fit_fills_the_budget_and_never_exceeds_it(cell, name):
    spec, ipcs = CELLS[cell]
    config = CONFIGS[name]
    if isinstance(config, Formation.Config) and isinstance(config.under, Lodc.Config):
        config = Formation.Config(under=Lodc.Config())
    for ipc in ipcs:
        budget = Budget(ipc=ipc)
        if name == "haba" and cell == "digits":
            config = Haba.Config()  # ten numbers for each label leave no room
        fitted = config.fit(budget, spec)
        fill = fitted.fill(budget, spec)
        assert (0.85 if "haba" in name else 0.9) <= fill <= 1, fitted.describe(budget, spec)
        assert fitted.floats(spec) <= budget.limit(spec)
        assert fitted.fit(budget, spec) == fitted, "a fitted configuration stays"
        assert fitted.decoded(spec) >= spec.classes


@pytest.mark.parametrize("storage", TYPES)
@pytest.mark.parametrize("name", ["pixel", "lodc", "lss", "nsd", "haba", "lss-global"])
def test_bytes_and_floats_as_budgets(name, storage):
    spec = CELLS["CIFAR-10"][0]
    for budget in (Budget(bytes=130_000), Budget(floats=40_001)):
        config = replace(CONFIGS[name], storage=storage).fit(budget, spec)
        codec = config.build(spec, torch.Generator().manual_seed(0))
        ledger = Ledger.of(codec.stored() | {"step_size": Stored(torch.ones(1), "step")})
        used = ledger.bytes / budget.bytes if budget.bytes else ledger.floats / budget.floats
        assert used == pytest.approx(config.fill(budget, spec))
        assert (0.8 if name in ("pixel", "haba") else 0.9) <= used <= 1


def test_two_dials_turn_every_family():
    spec, budget = CELLS["CIFAR-10"][0], Budget(ipc=10)
    for family, dials in {
        Lodc: [(1, None), (8, None)],
        Lss: [(2, 5), (8, 50)],
        Nsd: [(6, 2), (16, 12)],
        Haba: [(1, 2), (3, 8)],
    }.items():
        for rank, sharing in dials:
            fitted = family.Config(rank=rank, sharing=sharing).fit(budget, spec)
            assert (fitted.rank, fitted.sharing) == (rank, sharing) and 0.85 <= fitted.fill(budget, spec) <= 1


def test_what_is_left_goes_to_classes_in_turn():
    codec = built(Lodc.Config(), budget=Budget(floats=8 * 96 * 2 + 96 * 3), spec=SPEC)
    counts = [len(codec.of_class(c)) for c in range(4)]
    assert max(counts) - min(counts) == 1 and counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("config", "budget", "told"),
    [
        (Lodc.Config(rank=40), Budget(ipc=1), "rank=40.*1 to 32"),
        (Lss.Config(rank=33), Budget(ipc=1), "rank"),
        (Nsd.Config(rank=64), Budget(ipc=1), "rank"),
        (Haba.Config(rank=4), Budget(ipc=1), "channels"),
        (Pixel.Config(), Budget(ipc=0.5), "budget.ipc=1"),
        (Pixel.Config(), Budget(floats=30720), "at least 30721"),
        (Lodc.Config(rank=16), Budget(ipc=0.9), "smaller codec.rank"),
        (Haba.Config(sharing=50), Budget(ipc=1), "codec.sharing=5"),
        (Nsd.Config(), Budget(floats=50), "at least"),
        (Nsd.Config(spectra=7), Budget(ipc=1), "multiple"),
        (Lss.Config(subspaces=7), Budget(ipc=1), "scope=global"),
        (Nsd.Config(colours=2), Budget(ipc=1), "channels=mixed"),
        (Formation.Config(factor=20), Budget(ipc=1), "codec.factor=16"),
    ],
)
def test_refused_with_the_nearest_that_works(config, budget, told):
    with pytest.raises(Refused, match=told):
        config.fit(budget, CELLS["CIFAR-10"][0])


def test_refused_when_written():
    for wrong in ({"rank": 0}, {"lr_labels": 0.0}, {"sharing": -1}):
        with pytest.raises(Refused):
            CodecOptions(**wrong)
    with pytest.raises(Refused, match="dials"):
        Pixel.Config(rank=2)
    with pytest.raises(Refused, match="sharing"):
        Lodc.Config(sharing=2)
    with pytest.raises(Refused, match="fit"):
        Pixel.Config().build(SPEC, torch.Generator())


def test_formation_is_written_flat():
    config = parse(Formation.Config, {"factor": 2, "of": "lodc", "rank": 4, "labels": "soft"})
    assert config == Formation.Config(factor=2, under=Lodc.Config(rank=4, labels="soft"))
    assert parse(Formation.Config, to_dict(config)) == config
    with pytest.raises(Refused, match="pixel"):
        parse(Formation.Config, {"of": "formation"})


def test_formation_warns_where_little_is_left(caplog):
    Formation.Config(under=Lodc.Config(rank=2)).fit(Budget(ipc=1), CELLS["CIFAR-10"][0])
    assert "little is left" in caplog.text
