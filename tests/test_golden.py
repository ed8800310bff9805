"""Artifacts and buffers of every format version still load, decode, verify, export and feed a run: see golden/make.py."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rayd
from rayd.artifact.export import export
from rayd.config import run_of_card
from rayd.distill.storage import TYPES, Storage
from rayd.errors import Failed, Refused
from rayd.experts.buffer import Buffer
from rayd.experts.buffer import verify as verify_buffer
from rayd.methods import CODECS
from rayd.run.distill import distill
from rayd.run.verify import verify
from tests.golden.make import artifact_facts, buffer_facts, main

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = {
    f"{path.parent.name}/{name}": facts
    for path in sorted(GOLDEN.glob("*/expected.json"))
    for name, facts in json.loads(path.read_text()).items()
}
ARTIFACTS = [name for name, facts in EXPECTED.items() if "card" in facts]
BUFFERS = [name for name in EXPECTED if name not in ARTIFACTS]
DECODED = ("images", "pixels", "targets")
NEAR = 1e-5


def copied(name, tmp_path):
    return Path(shutil.copytree(GOLDEN / name, tmp_path / "copy"))


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_every_codec_and_storage_type_is_frozen():
    cards = [EXPECTED[name]["card"] for name in ARTIFACTS]
    assert {card["codec"]["name"] for card in cards} == set(CODECS)
    storages = {Storage.parse(storage) for card in cards for storage in card["storage"].values()}
    assert {one.type for one in storages} == set(TYPES)
    assert {one.scales for one in storages} == {"row", "column", "tensor", "group64"} and any(s.coded for s in storages)
    assert {"labels", "teacher"} <= {role for card in cards for role in card["roles"].values()}
    there = {f"{path.parent.name}/{path.name}" for path in GOLDEN.glob("[0-9]*/*") if path.is_dir()}
    assert there == set(EXPECTED)


def test_what_is_frozen_is_not_written_again():
    with pytest.raises(SystemExit, match="is there already"):
        main(GOLDEN / "1")


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_loads_and_decodes(name):
    expected, facts = EXPECTED[name], artifact_facts(GOLDEN / name)
    for view in DECODED:
        assert facts[view]["sums"] == pytest.approx(expected[view]["sums"], abs=NEAR), view
    if expected["card"]["codec"]["name"] == "pixel":
        assert facts["images"]["sha256"] == expected["images"]["sha256"], "pixels are read, not computed"
    assert {key: one for key, one in facts.items() if key not in DECODED} == {
        key: one for key, one in expected.items() if key not in DECODED
    }


@pytest.mark.parametrize("name", ARTIFACTS)
def test_the_ledger_is_the_file_size(name):
    artifact = rayd.load(GOLDEN / name)
    size = (GOLDEN / name / "codec.safetensors").stat().st_size
    assert artifact.ledger["bytes"] == artifact.card["ledger"]["bytes"] == size
    assert artifact.ledger["floats"] == artifact.card["ledger"]["floats"]


@pytest.mark.parametrize("name", ARTIFACTS)
def test_the_claim_of_an_artifact_holds(name):
    """Scores and preview too."""
    findings = list(verify(str(GOLDEN / name)))
    assert [str(finding) for finding in findings if not finding.holds] == []
    assert sum("score of distilled" in one.what for one in findings) >= 2


@pytest.mark.parametrize("name", ARTIFACTS)
def test_a_damaged_artifact_is_refused(name, tmp_path):
    folder = copied(name, tmp_path)
    flip(folder / "codec.safetensors", -1)
    with pytest.raises(Refused, match=r"codec\.safetensors: was changed"):
        rayd.load(folder)


def test_an_artifact_is_exported(tmp_path):
    source = GOLDEN / "1/pixel"
    artifact = rayd.load(source)
    export(str(source), str(tmp_path / "tensors"), "tensors", "exact")
    assert torch.equal(torch.load(tmp_path / "tensors" / "images.pt", weights_only=True), artifact.images("network"))
    assert torch.equal(torch.load(tmp_path / "tensors" / "labels.pt", weights_only=True), artifact.targets)
    names = export(str(source), str(tmp_path / "folder"), "folder")
    assert sum(name.endswith(".png") for name in names) == len(artifact)


@pytest.mark.parametrize("name", BUFFERS)
def test_a_buffer_opens_and_its_rows_are_those_written(name):
    expected = EXPECTED[name]
    assert buffer_facts(GOLDEN / name) == expected
    assert verify_buffer(str(GOLDEN / name)) == []
    markers = [json.loads(path.read_text()) for path in sorted((GOLDEN / name).glob("experts-*.json"))]
    assert [marker["fingerprint"] for marker in markers] == [expected["fingerprint"]] * len(markers)


@pytest.mark.parametrize("name", BUFFERS)
def test_a_buffer_without_its_manifest_is_read_from_its_markers(name, tmp_path):
    folder = copied(name, tmp_path)
    (folder / "manifest.parquet").unlink()
    assert buffer_facts(folder)["rows"] == EXPECTED[name]["rows"]


@pytest.mark.parametrize("name", BUFFERS)
def test_a_damaged_buffer_is_refused(name, tmp_path):
    folder = copied(name, tmp_path)
    marker = json.loads((folder / "experts-00000.json").read_text())
    flip(folder / "experts-00000.tar", marker["experts"][0]["offset"] + 1)
    with pytest.raises(Failed, match=r"experts-00000\.tar: expert 0, epoch 0 fails its checksum"):
        Buffer(str(folder)).row(0, 0)
    assert len(verify_buffer(str(folder))) == 1


@pytest.mark.parametrize("name", ["1/pixel", "1/lss", "1/nsd", "1/haba"])
def test_the_run_on_a_card_still_runs_on_its_buffer(name, tmp_path):
    """Its words are still understood, and the buffer is still the one they name; trained numbers may differ by CPU."""
    frozen = rayd.load(GOLDEN / name)
    run = replace(run_of_card(frozen.card["config"]), out=str(tmp_path), buffer=str(GOLDEN / "1/buffer"))
    assert [step.number for step in distill(run)] == [1, 2, 3]
    again = rayd.load(tmp_path / "artifact")
    assert again.card["codec"] == frozen.card["codec"] and again.card["roles"] == frozen.card["roles"]
    assert all(again.stored[key].tensor.shape == one.tensor.shape for key, one in frozen.stored.items())
