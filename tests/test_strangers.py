"""Files from strangers, through load, verify, export, report and whatever else reads them: refused in words, or read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.strangers import Readers, readers

SHARES = {"artifact": 15, "buffer": 25, "prepared": 15, "webdataset": 15, "parquet": 10, "tensors": 12, "saved": 8}
"""Per cent of the mutations that are of each kind."""


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Readers]:
    with readers(tmp_path_factory.mktemp("strangers")) as process:
        yield process


@pytest.mark.parametrize("kind", SHARES)
def test_some_mutations(reading: Readers, kind: str) -> None:
    wrong = reading.read(kind, 0, 30)
    assert not wrong, "\n".join(f"{one['seed']}: {one['told']}: {'; '.join(one['wrong'])}" for one in wrong)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
@pytest.mark.parametrize("kind", SHARES)
def test_ten_thousand_mutations(reading: Readers, kind: str, part: int) -> None:
    wrong = reading.read(kind, 1000 + 10 * SHARES[kind] * part, 10 * SHARES[kind])
    assert not wrong, "\n".join(f"{one['seed']}: {one['told']}: {'; '.join(one['wrong'])}" for one in wrong)
