"""Folders of one's own in every layout, imbalance, and what a survey says of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayd.data.config import DataConfig, deciding_keys
from rayd.data.images import LONGER, Images, balance_rows, counts
from rayd.data.load import load
from rayd.data.remarks import remarks
from rayd.data.sources.decode import Shape, decode, facts
from rayd.data.survey import full_survey, quick_survey
from rayd.errors import Refused
from rayd.evaluate.coreset import orders
from tests.support.odd import file, pattern, plain, put


@pytest.fixture(autouse=True)
def place(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder and a cache with nothing in them."""
    monkeypatch.chdir(tmp_path)


def own(path: Path, **keys: Any) -> DataConfig:
    return DataConfig(name="folder", path=str(path), **{"val": 0, **keys})


def pictures(root: Path, n: int = 12) -> None:
    for i in range(n):
        put(root / f"{i:02d}.png", file(pattern(i % 3, i, (8, 8))))


def table(root: Path) -> None:
    """By name below a folder, with a byte order mark, semicolons and quotes."""
    pictures(root / "images")
    rows = [f'{i:02d}.png;"the {"abc"[i % 3]}; kind"' for i in range(12)]
    put(root / "labels.csv", ("\ufefffile;kind\n" + "\n".join(rows)).encode())


def kaggle(root: Path) -> None:
    """By name without its ending; the pictures without labels are left out."""
    pictures(root / "train")
    pictures(root / "test", 3)
    put(root / "train.csv", ("id,label\n" + "\n".join(f"train/{i:02d}.png,{i % 3 + 1}" for i in range(12))).encode())


def parts_in_a_column(root: Path) -> None:
    pictures(root)
    parts = ["train"] * 6 + ["Test"] * 6
    lines = [f"{i:02d}\t{'abc'[i % 3]}\t{parts[i]}" for i in range(12)]
    put(root / "all.tsv", ("name\tlabel\tsplit\n" + "\n".join(lines)).encode())


def table_in_parquet(root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures(root)
    names = [f"{i:02d}.png" for i in range(12)]
    pq.write_table(pa.table({"path": names, "label": [i % 3 for i in range(12)]}), root / "labels.parquet")


def dataset(root: Path) -> None:
    import datasets
    from PIL import Image

    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b", "c"])})
    images = [Image.fromarray(pattern(i % 3, i, (8, 8))) for i in range(12)]
    data = datasets.Dataset.from_dict({"img": images, "kind": [i % 3 for i in range(12)]}, features=features)
    data.save_to_disk(str(root))


def stack() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return np.stack([pattern(i % 3, i, (8, 8)) for i in range(12)]), np.arange(12) % 3


def npz(root: Path) -> None:
    x, y = stack()
    root.mkdir()
    np.savez(root / "set.npz", train_images=x, train_labels=y[:, None], test_images=x[:6], test_labels=y[:6, None])


def npy(root: Path) -> None:
    x, y = stack()
    root.mkdir()
    for name, array in {"x_train": x, "y_train": y, "x_test": x[:6], "y_test": y[:6]}.items():
        np.save(root / f"{name}.npy", array)


def safetensors(root: Path) -> None:
    from safetensors.numpy import save_file

    x, y = stack()
    root.mkdir()
    floats = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32) / 255
    save_file({"images": floats, "labels": y}, root / "set.safetensors")


def tars(root: Path) -> None:
    root.mkdir()
    with tarfile.open(root / "all.tar", "w") as tar:
        for i in range(12):
            for ending, data in (("png", file(pattern(i % 3, i, (8, 8)))), ("cls", b"abc"[i % 3 : i % 3 + 1])):
                entry = tarfile.TarInfo(f"{i:02d}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


LAYOUTS: tuple[Callable[[Path], None], ...] = (
    table, kaggle, parts_in_a_column, table_in_parquet, dataset, npz, npy, safetensors, tars,
)  # fmt: skip


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_a_layout_is_found_and_read(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "set")
    loaded = load(own(tmp_path / "set"))
    assert len(loaded.train.classes) == 3 and loaded.train.spec.shape == (3, 8, 8)
    images, labels = [part.pixels_NCHW[:] for part in (loaded.train, loaded.test)], loaded.train.labels_N.tolist()
    known = {pattern(i % 3, i, (8, 8)).tobytes(): i % 3 for i in range(12)}
    assert [known[one.permute(1, 2, 0).numpy().tobytes()] for one in images[0]] == labels
    assert all(one.permute(1, 2, 0).numpy().tobytes() in known for one in images[1])
    assert min(torch.bincount(loaded.test.labels_N, minlength=3).tolist()) >= 1, "every class is tested"


def test_a_file_can_be_named_itself_whatever_lies_beside_it(tmp_path: Path) -> None:
    npz(tmp_path / "set")
    plain(tmp_path / "set", {"a": 3, "b": 3}, (8, 8))
    table_in_parquet(tmp_path / "other")
    (tmp_path / "other" / "labels.parquet").rename(tmp_path / "set" / "labels.parquet")
    assert len(load(own(tmp_path / "set" / "set.npz")).train) == 12
    table_in_parquet(tmp_path / "set" / "pictures")
    loaded = load(own(tmp_path / "set" / "pictures" / "labels.parquet"))
    assert len(loaded.train) + len(loaded.test) == 12 and len(loaded.train.classes) == 3


def test_a_table_says_what_it_lacks(tmp_path: Path) -> None:
    pictures(tmp_path / "a")
    lines = [f"{i:02d}.png,{'' if i == 1 else i % 3},x" for i in range(12)] + ["gone.png,1,x"]
    put(tmp_path / "a" / "labels.csv", ("file,label,note\n" + "\n".join(lines)).encode())
    with pytest.raises(Refused, match=r"labels.csv: 01.png \(no label\), labels.csv: gone.png \(no such file\)"):
        load(own(tmp_path / "a"))
    with pytest.raises(Refused, match=r"data.label_column=kind: allowed is label \| note"):
        load(own(tmp_path / "a", label_column="kind"))


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (np.zeros((4, 8, 8, 5)), np.arange(4), "of 1 or 3 channels"),
        (np.full((4, 8, 8), -1.5), np.arange(4), "undo the normalisation"),
        (np.zeros((4, 8, 8)), np.arange(3), "as many labels as"),
        (np.zeros((4, 8, 8)), np.eye(4), "whole numbers or texts"),
    ],
)
def test_tensors_that_are_no_images_are_refused(images: Any, labels: Any, says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    with pytest.raises(Refused, match=says):
        load(own(tmp_path))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.zeros((4, 8, 8)), labels=np.array([{}, {}, {}, {}]))
    with pytest.raises(Refused, match="arrays of numbers or texts"):
        load(own(tmp_path))
    torch.save(torch.zeros(3), tmp_path / "images.pt")
    (tmp_path / "set.npz").unlink()
    with pytest.raises(Refused, match=r"not \.pt"):
        load(own(tmp_path))


def test_the_bits_in_use_are_kept() -> None:
    grey = pattern(0, 0, (8, 8), 1)
    scan = file(grey.astype(np.uint16) * 16 + 15)
    assert facts(scan).white == int(grey.max()) * 16 + 15  # type: ignore[union-attr]
    assert np.array_equal(decode(scan, Shape(None, 1, "crop", 12)), grey[None])
    assert np.array_equal(decode(scan, Shape(None, 1, "crop")), grey[None] >> 4)
    assert "32-bit" in str(decode(file(grey.astype(np.float32), "tiff"), Shape(None, 1, "crop")))


# ---- imbalance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[5, 5], [100, 3], [200, 50, 7, 1], [1000, *[2] * 60]])
def test_small_classes_are_repeated(sizes: list[int]) -> None:
    labels = torch.cat([torch.full((size,), c) for c, size in enumerate(sizes)])
    index = balance_rows(labels, 0)
    count = torch.bincount(labels[index]).tolist()
    assert set(index.tolist()) == set(range(len(labels))) and torch.equal(index, index.sort().values)
    assert len(index) <= LONGER * len(labels) and max(count) == max(sizes)
    small = [c for c, size in zip(count, sizes, strict=True) if size < max(sizes)]
    assert len(set(small)) <= 1, "all small classes alike"
    assert len(index) > (LONGER - 1) * len(labels) or set(count) == {max(sizes)}
    for rows in (labels == 1).nonzero().split(1):
        assert abs(int((index == rows).sum()) - count[1] / sizes[1]) < 1, "each image of a class as often"


def test_balance_is_for_training_and_scores_and_controls_choose_each_image_once(tmp_path: Path) -> None:
    plain(tmp_path / "set", {"much": 60, "few": 10}, (8, 8))
    even_split, plain_split = load(own(tmp_path / "set", balance=True)), load(own(tmp_path / "set"))
    assert plain_split.train.manifest["counts"] == {"few": 8, "much": 48}
    assert even_split.train.manifest["counts"] == {"few": 48, "much": 48}
    assert even_split.test.manifest["counts"] == {"few": 12, "much": 12}
    assert even_split.train.manifest["content"] != plain_split.train.manifest["content"]
    chosen = orders("random", even_split.train, 20, 0, None)
    assert [len(order) for order in chosen] == [8, 20]
    pixels = even_split.train.pixels_NCHW[chosen[0]]
    assert len({one.numpy().tobytes() for one in pixels}) == 8


def test_keys_that_decide_nothing_leave_identities_as_they_were() -> None:
    assert deciding_keys({"name": "x", "bits": 16, "balance": False}) == {"name": "x"}
    assert deciding_keys({"bits": 12, "balance": True}) == {"bits": 12, "balance": True}


def test_a_drawn_validation_split_leaves_every_class_an_image(tmp_path: Path) -> None:
    plain(tmp_path / "set", {"much": 60, "few": 3}, (8, 8))
    splits = load(own(tmp_path / "set", val=0.3))
    assert splits.train.manifest["counts"]["few"] >= 1 and splits.test.manifest["counts"]["few"] == 1
    (tmp_path / "set" / "test" / "much").mkdir(parents=True)
    for part, name, n in (("train", "much", 20), ("test", "much", 5), ("train", "none", 0), ("test", "only", 1)):
        for i in range(n):
            put(tmp_path / "b" / part / name / f"{i}.png", file(pattern(n, i, (8, 8))))
    put(tmp_path / "b" / "train" / "few" / "0.png", file(pattern(9, 0, (8, 8))))
    assert load(own(tmp_path / "b", val=0.1)).train.manifest["counts"] == {"few": 1, "much": 18}


# ---- the survey ------------------------------------------------------------------------------------------------


def test_duplicates_are_found_by_their_pixels(tmp_path: Path) -> None:
    plain(tmp_path / "set" / "train", {"a": 6, "b": 6}, (8, 8))
    plain(tmp_path / "set" / "test", {"a": 2, "b": 2}, (8, 8))
    one = pattern(0, 3, (8, 8))
    put(tmp_path / "set" / "train" / "b" / "again.bmp", file(one, "bmp"))
    survey = full_survey(own(tmp_path / "set"))
    kinds = sorted((duplicate.across, duplicate.agree) for duplicate in survey.duplicates)
    assert kinds == [(False, False)] + [(True, True)] * 4, "another file of the same pixels counts, with its label"
    said = " ".join(map(str, remarks(survey, own(tmp_path / "set"))))
    assert "4 test images are training images too" in said and "1 pair of equal images has different labels" in said


def test_a_quick_survey_is_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain(tmp_path / "set", {"a": 300, "b": 300}, (8, 8))
    first = quick_survey(own(tmp_path / "set"))
    assert len(first.sides) == 256 and first.parts["train"].counts == (240, 240) and not first.whole
    monkeypatch.setattr("rayd.data.survey.facts", None)
    assert quick_survey(own(tmp_path / "set")) == first
    put(tmp_path / "set" / "a" / "x.png", file(pattern(0, 999, (8, 8))))
    with pytest.raises(TypeError):
        quick_survey(own(tmp_path / "set"))


def test_remarks_name_odd_classes(tmp_path: Path) -> None:
    plain(tmp_path / "set", {"cat": 20, "Cat ": 20, "dog": 2, "owl": 1}, (8, 8))
    config = replace(own(tmp_path / "set"), size=32)
    said = [str(one) for one in remarks(full_survey(config), config)]
    assert any("imbalance 16:1" in one and "data.balance=true lets" in one for one in said)
    assert any("2 classes have one training image: dog, owl" in one for one in said)
    assert any("1 class has no test image" in one and "owl" in one for one in said)
    assert any("differ in case or spaces only: Cat , cat" in one for one in said)
    assert any("smaller than data.size=32" in one for one in said)


def test_counts_name_classes() -> None:
    images = Images(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 1]), ("a", "b"), "x", {})
    assert counts(images.labels_N, images.classes) == {"a": 2, "b": 1}
