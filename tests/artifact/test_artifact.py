from __future__ import annotations

import json
import subprocess
import sys

import numpy
import pytest
import torch

import rayd
from rayd.artifact import load, png, write
from rayd.data.transform import Transform
from rayd.distill.budget import Stored, from_bytes, to_bytes
from rayd.errors import Refused
from rayd.methods import CODECS
from rayd.run.verify import verify
from rayd.store import Store
from tests.support.runs import TABLE, an_artifact, small_run
from tests.support.worlds import TinyPixels, tiny


def make(kind="normalise", ipc=2):
    images = tiny()
    transform = Transform.fit(images, kind)
    codec = TinyPixels.Config(ipc=ipc).build(images.spec, torch.Generator())
    stored = {**codec.stored(), "step_size": Stored(torch.tensor([0.02]), "step")}
    about = write.Provenance(
        codec={"name": "tiny", "ipc": ipc},
        spec=images.spec,
        classes=images.classes,
        sentence="pixel + mtt",
        data=images.manifest,
        seeds={"run": 0},
    )
    return about, codec, stored, transform, {"distill_s": 1.0}


def saved(folder):
    write.save(folder, *make())
    return folder


@pytest.fixture(autouse=True)
def tiny_codec(monkeypatch):
    """The codec of these artifacts, under a name of its own."""
    monkeypatch.setitem(CODECS, "tiny", TinyPixels)


def test_tensor_files_give_back_what_was_written():
    numbers = {
        "a": torch.randn(3, 4).T,
        "b": torch.tensor(7),
        "c": torch.zeros(0),
        "d": torch.randn(2, dtype=torch.bfloat16),
    }
    back = from_bytes(to_bytes(numbers))
    assert set(back) == set(numbers)
    assert all(torch.equal(back[k], numbers[k]) and back[k].dtype == numbers[k].dtype for k in numbers)
    assert to_bytes(numbers) == to_bytes(numbers)
    with pytest.raises(Refused, match="not a readable safetensors"):
        from_bytes(b"nonsense")


@pytest.mark.parametrize("kind", ["normalise", "zca", "none"])
def test_an_artifact_loads_as_it_was_saved(tmp_path, kind):
    _, codec, *_ = parts = make(kind)
    made = write.files(*parts)
    write.save(tmp_path / "a", *parts)
    back = load.load(tmp_path / "a")
    assert torch.equal(back.images("network"), codec.pixels.detach()) and back.step_size == pytest.approx(0.02)
    assert torch.equal(back.labels, codec.classes()) and torch.equal(back.targets.argmax(1), back.labels)
    assert back.images("uint8").dtype == torch.uint8 and back.images().shape == (6, 1, 8, 8)
    assert back.ledger["floats"] == 6 * 64 + 1 and back.ledger["bytes"] == len(made["codec.safetensors"])
    assert made == write.files(*make(kind)), "two equal runs write the same bytes"


@pytest.mark.parametrize("name", ["codec.safetensors", "transform.json", "ledger.json", "card.json", "README.md"])
def test_a_changed_file_is_refused_by_name(tmp_path, name):
    folder = saved(tmp_path)
    data = bytearray((folder / name).read_bytes())
    spot = data.rindex(b"0") if name == "card.json" else len(data) - 5
    data[spot] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(Refused, match=name.replace(".", r"\.")):
        load.load(folder)


def test_foreign_newer_and_missing_are_refused(tmp_path):
    with pytest.raises(Refused, match=rf"artifact={tmp_path}: .* card\.json; run jobs\.distill first"):
        load.load(tmp_path)
    folder = saved(tmp_path)
    card = json.loads((folder / "card.json").read_text())
    for change, words in (({"kind": "other"}, "kind=other"), ({"format": 99}, "format=99.*update rayd")):
        (folder / "card.json").write_text(json.dumps(card | change))
        with pytest.raises(Refused, match=words):
            load.load(folder)
    (folder / "card.json").write_text(json.dumps(card))
    (folder / "ledger.json").unlink()
    with pytest.raises(Refused, match=r"ledger\.json: missing"):
        load.load(folder)
    with pytest.raises(Refused, match="holds another artifact"):
        write.save(tmp_path, *make(ipc=3))
    with pytest.raises(Refused, match="budget=1 floats: allowed is at least the 385 floats that pixel"):
        write.save(tmp_path / "b", *make(), most=1)


def test_scores_are_amended_and_the_card_stays_whole(tmp_path):
    folder = saved(tmp_path)
    score = {
        "set": "distilled", "recipe": "plain", "net": "n", "mean": 0.5, "std": 0.01, "n": 5, "ci95": 0.012, "view": "exact",
        "images": 6, "bytes": 100, "seed_list": [1],
    }  # fmt: skip
    changes, added = {"scores": {"plain": score}, "reads": 1}, {"controls.json": json.dumps(TABLE).encode()}
    write.amend(Store(folder), lambda card, contents: (changes, added))
    card = load.load(folder).card
    assert (
        card["reads"] == 1 and "controls.json" in card["files"] and "50.0 ± 1.0 %" in (folder / "README.md").read_text()
    )


def test_preview_is_a_png_others_can_read(tmp_path):
    image = pytest.importorskip("PIL.Image")
    contents = write.files(*make())
    write.save(tmp_path, *make())
    with image.open(tmp_path / "preview.png") as picture:
        assert picture.size == (2 * 8 + 2, 3 * 8 + 2 * 2)
        pixels = torch.from_numpy(numpy.array(picture))[None]
    assert torch.equal(png.unpng(contents["preview.png"], (1, 28, 18)), pixels)
    for bad in (contents["preview.png"][:-40], contents["preview.png"].replace(b"IDAT", b"IDAX"), b""):
        with pytest.raises(Refused, match=r"preview\.png"):
            png.unpng(bad, (1, 28, 18))
    with pytest.raises(Refused, match="image of 18 x 27"):
        png.unpng(contents["preview.png"], (1, 27, 18))


def test_loading_needs_torch_and_safetensors_alone():
    heavy = ("ray", "hydra", "pyarrow", "torchvision", "PIL")
    code = f"import sys, rayd.artifact.load, rayd.artifact.write; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(set(CODECS) - {"jpeg"}))  # its storage is its files: methods/test_jpeg.py
@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_every_codec_comes_back_as_stored(tmp_path, name, storage):
    under = {"name": name, "storage": storage, **({"of": "lodc"} if name == "formation" else {})}
    method = {"codec": under, "objective": {"name": "distribution"}}
    run = small_run(method=method, budget={"ipc": 4}, data={"size": 16, "channels": 3})
    folder = an_artifact(tmp_path / "a", run)
    back = rayd.load(folder)
    assert back.images("network").shape == (len(back), 3, 16, 16) and torch.isfinite(back.images()).all()
    assert back.ledger["bytes"] == (folder / "codec.safetensors").stat().st_size
    assert all(one.holds for one in verify(str(folder), run, scores=False)), list(verify(str(folder), run, False))
