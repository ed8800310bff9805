"""A whitening whose matrix was left out of the folder: fitted again, on the same images alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import rayd
from rayd.artifact.load import self_hash
from rayd.artifact.write import as_json, leave_out_matrix
from rayd.data.config import DataConfig
from rayd.data.load import load
from rayd.errors import Refused
from rayd.run.verify import verify
from rayd.store import Store

GOLDEN = Path(__file__).parents[1] / "golden" / "1" / "pixel-zca"


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    made = Path(shutil.copytree(GOLDEN, tmp_path / "set"))
    leave_out_matrix(Store(made))
    return made


def test_it_is_fitted_again(folder: Path) -> None:
    whole, left = rayd.load(GOLDEN), rayd.load(folder)
    assert left.whole is None and "transform.safetensors" not in left.contents
    assert torch.equal(left.images("network"), whole.images("network")), "without the data"
    assert torch.allclose(left.images(), whole.images(), atol=1e-4)
    assert left.card["scores"] == whole.card["scores"] and left.ledger == whole.ledger
    assert sum(path.stat().st_size for path in folder.iterdir()) < sum(path.stat().st_size for path in GOLDEN.iterdir())


def test_its_claim_is_computed_again(folder: Path) -> None:
    found = list(verify(folder))
    assert all(finding.holds for finding in found), [str(finding) for finding in found if not finding.holds]
    assert {"preview shows the stored images", "transform fits the training set"} <= {finding.what for finding in found}


def test_twice_is_once(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.copy(GOLDEN / "transform.safetensors", folder)  # as a process leaves it that dies before the last step
    leave_out_matrix(Store(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_images_are_refused(folder: Path) -> None:
    train = load(DataConfig(name="digits", val=7)).train
    with pytest.raises(Refused, match=r"training images .*those it was fitted on"):
        rayd.load(folder).on(train)


def test_data_that_a_card_alone_names_are_not_opened(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_bytes())
    card["config"]["data"] |= {"path": "elsewhere"}
    (folder / "card.json").write_bytes(as_json({**card, "sha256": self_hash(card)}))
    left, right = rayd.load(folder), rayd.load(GOLDEN).card["config"]["data"]
    with pytest.raises(Refused, match=r"not opened: they lay in a folder, elsewhere.*artifact\.on"):
        left.images()
    train = load(DataConfig(**{key: value for key, value in right.items() if key in ("name", "val")})).train
    assert len(left.on(train).images()) == len(left)
