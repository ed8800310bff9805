from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import rayd
from rayd.artifact.export import export, rendered
from rayd.data.load import load as load_data
from rayd.errors import Refused
from rayd.evaluate.recipe import RecipeConfig
from rayd.run import evaluate
from rayd.run.distill import distill
from rayd.run.experts import ExpertPlan, build
from rayd.schema import to_dict
from tests.support.runs import an_artifact, small_run


@pytest.fixture
def made(tmp_path):
    run = small_run()
    return rayd.load(an_artifact(tmp_path / "artifact", run, images=lambda pixels: 3 * torch.randn(pixels.shape)))


def test_parquet_opens_as_images_with_class_names(tmp_path, made, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    export(str(tmp_path / "artifact"), str(tmp_path / "out"))
    path = str(tmp_path / "out" / "data" / "train-00000-of-00001.parquet")
    data = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "hf"))
    assert data.features["label"].names == list(made.classes) and data["label"] == made.labels.tolist()
    pixels = torch.stack([torch.from_numpy(np.array(one)) for one in data["image"]])
    assert torch.equal(pixels[:, None], made.images("uint8"))


ODD_NAMES = ("l'été", 'say "hi": {yes}', "猫", "- a, [b]", "no", "7")


def test_the_folder_is_ready_for_the_hub(tmp_path, monkeypatch):
    """The metadata of its card is read without complaint, and the folder loads, whatever its classes are called."""
    datasets, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    made = rayd.load(an_artifact(tmp_path / "artifact", small_run(data={"name": "generated", "classes": 6, "size": 8})))
    artifact = replace(made, card={**made.card, "classes": list(ODD_NAMES)})
    for name, data in rendered(artifact, "parquet").items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(data)
    card = hub.DatasetCard.load(tmp_path / "out" / "README.md")
    about = card.data.to_dict()
    assert about["size_categories"] == ["n<1K"] and about["configs"][0]["data_files"][0]["path"] == "data/*.parquet"
    assert about["dataset_info"]["splits"][0]["num_examples"] == len(artifact)
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.features["label"].names == list(ODD_NAMES) and len(data) == len(artifact)


def test_soft_labels_go_along(tmp_path, made, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    method = {"codec": {"name": "pixel", "labels": "soft"}, "objective": {"name": "mtt"}}
    folder = an_artifact(tmp_path / "soft", small_run(method=method, budget={"ipc": 2}))
    data = rendered(rayd.load(folder), "parquet")["data/train-00000-of-00001.parquet"]
    table = pq.read_table(io.BytesIO(data))
    assert "soft_label" in rendered(rayd.load(folder), "parquet")["README.md"].decode().split("---")[1]
    assert np.allclose(np.array(table["soft_label"].to_pylist()), rayd.load(folder).targets, atol=1e-3)


def test_webdataset_and_folders(tmp_path, made):
    webdataset = pytest.importorskip("webdataset")
    export(str(tmp_path / "artifact"), str(tmp_path / "out"), "webdataset")
    samples = list(
        webdataset.WebDataset(str(tmp_path / "out" / "train-00000.tar"), shardshuffle=False).decode("torchrgb8")
    )
    assert [sample["cls"] for sample in samples] == made.labels.tolist()
    assert torch.equal(samples[1]["png"][:1], made.images("uint8")[1])
    names = export(str(tmp_path / "artifact"), str(tmp_path / "folder"), "folder")
    assert "000_class0/00000.png" in names


def test_tensors_are_exact_and_nothing_but_tensors(tmp_path, made):
    export(str(tmp_path / "artifact"), str(tmp_path / "out"), "tensors", "exact")
    images = torch.load(tmp_path / "out" / "images.pt", weights_only=True)
    assert torch.equal(images, made.images("network"))
    assert torch.equal(torch.load(tmp_path / "out" / "labels.pt", weights_only=True), made.labels)
    assert float(torch.load(tmp_path / "out" / "lr.pt", weights_only=True)) == pytest.approx(0.02)


def test_what_cannot_be_is_refused_and_nothing_is_overwritten(tmp_path, made):
    for words, format, view in (
        ("format=zip", "zip", "png"),
        ("view=exact", "parquet", "exact"),
        ("view=x", "folder", "x"),
    ):
        with pytest.raises(Refused, match=words):
            rendered(made, format, view)
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "train-00000-of-00001.parquet").write_bytes(b"mine")
    with pytest.raises(Refused, match="is there already and differs"):
        export(str(tmp_path / "artifact"), str(tmp_path / "out"))
    assert (tmp_path / "out" / "data" / "train-00000-of-00001.parquet").read_bytes() == b"mine"


CONSUMER = """
import json, sys
import numpy, torch
block, held, values = sys.stdin.read(), numpy.load(sys.argv[1]), []
for seed in range(5):
    torch.manual_seed(seed)
    space = {}
    exec(block, space)
    with torch.no_grad():
        right = space["net"](space["prepare"](list(held["pixels"]))).argmax(1).numpy() == held["labels"]
    values.append(float(right.mean()))
print(json.dumps([values, [m for m in sys.modules if m.startswith("rayd")]]))
"""


@pytest.mark.parametrize(
    ("codec", "labels"),
    [
        pytest.param("pixel", "hard", marks=pytest.mark.slow),
        pytest.param("jpeg", "hard", marks=pytest.mark.slow),
        ("jpeg", "soft"),
        pytest.param("jpeg stream", "hard", marks=pytest.mark.slow),
    ],
)
def test_a_stranger_with_datasets_and_torch_gets_the_cards_number(tmp_path, codec, labels):
    """Digits: the ten lines of the export's README, five networks, against the card's score of that same view: 8 bits, or a
    distilled set's own JPEG files, with the labels that lie beside them."""
    import json

    pytest.importorskip("datasets")
    pytest.importorskip("sklearn")
    sgd = {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    plain = to_dict(RecipeConfig(name="plain", steps=300, augment=None, **sgd))
    codec, _, stream = codec.partition(" ")
    budget = {"bytes": 4000} if codec == "jpeg" else {"ipc": 5}
    method = {"codec": {"name": codec} | ({"entropy": "context"} if stream else {}), "steps": 10}
    if labels == "soft":
        method["codec"] |= {"labels": "soft", "storage": "int4"}
        method["objective"] = {"name": "mtt", "expert_epochs": 1, "last": 2, "inner_steps": 2, "batch": 10}
    run = small_run(
        data={"name": "digits"}, net={"width": 16, "depth": None}, recipe=plain, budget=budget, method=method,
        expert={"experts": 2, "epochs": 10}, out=str(tmp_path),
    )  # fmt: skip
    if labels == "soft":
        list(build(ExpertPlan.open(run)))
    if codec == "jpeg":
        list(distill(run))
    folder = tmp_path / "artifact" if codec == "jpeg" else an_artifact(tmp_path / "artifact", run)
    evaluate.score(run, str(folder), [])
    export(str(folder), str(tmp_path / "out"))
    if labels == "soft":
        sure = rayd.load(folder).targets.amax(1)
        assert float(sure.std()) > 0.01, "labels differ from each other"
        names = export(str(folder), str(tmp_path / "folder"), "folder")
        rows = [json.loads(line) for line in (tmp_path / "folder" / "metadata.jsonl").read_text().splitlines()]
        assert [row["file_name"] for row in rows] == [name for name in names if name.endswith("jpg")]
        assert np.allclose([row["soft_label"] for row in rows], rayd.load(folder).targets, atol=1e-6)
    told = rayd.load(folder).card["scores"][f"{'distilled' if codec == 'jpeg' else 'distilled-8bit'}/convnet-w16/plain"]
    block = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(block.strip().splitlines()) <= 15
    test = load_data(run.data).test
    np.savez(tmp_path / "test.npz", pixels=test.pixels_NCHW[:, 0].numpy(), labels=test.labels_N.numpy())
    done = subprocess.run(
        [sys.executable, "-c", CONSUMER, str(tmp_path / "test.npz")],
        input=block,
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    values, ours = json.loads(done.stdout.splitlines()[-1])
    assert ours == [], "no rayd in the stranger's process"
    gap, wide = abs(np.mean(values) - told["mean"]), 2.776 * np.std(values, ddof=1) / 5**0.5 + told["ci95"]
    assert gap <= max(wide, 0.02), (values, told)


def test_what_clipping_costs_is_said(made, caplog):
    """Of the zoo's set: 43.5 as it is stored, 21.3 as pictures."""
    row = {
        "set": "distilled",
        "view": "exact",
        "recipe": "r",
        "net": "w",
        "n": 5,
        "std": 0.01,
        "ci95": 0.01,
        "mean": 0.4354,
    }
    cut = {**row, "set": "distilled-8bit", "view": "8-bit", "mean": 0.213}
    for rows, said in (({"distilled/w/r": row}, False), ({"distilled/w/r": row, "distilled-8bit/w/r": cut}, True)):
        caplog.clear()
        artifact = replace(made, card={**made.card, "scores": rows})
        page = rendered(artifact, "folder")["README.md"].decode()
        assert ("Clipped: as pictures of 8 bits it has 21.3" in page) == ("view=exact" in caplog.text) == said
        assert "Clipped" not in rendered(artifact, "tensors", "exact")["README.md"].decode()
