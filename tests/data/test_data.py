"""Datasets: every layout, splits by plan, bad files by name, the cache."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rayd.data.config import DataConfig
from rayd.data.images import Spec, channel_statistics
from rayd.data.load import load as load_data
from rayd.data.sources.decode import Shape, decode
from rayd.errors import Refused
from rayd.schema import parse


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def picture(seed: int, size: tuple[int, int] = (16, 16), mode: str = "RGB", kind: str = "png") -> bytes:
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, mode=mode).save(out, kind)
    return out.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def plain_folder(root: Path, per_class: int = 4) -> None:
    for part in ("train", "val"):
        for c, name in enumerate(("cat", "dog")):
            for i in range(per_class):
                put(root / part / name / f"{i}.png", picture(100 * c + i))


def test_digits_and_generated() -> None:
    splits = load_data(DataConfig(name="digits"))
    assert splits.train.spec == Spec((1, 8, 8), 10) and splits.train.spec.floats == 64
    assert len(splits.train) + len(splits.val) + len(splits.test) == 1797
    assert int(splits.train.pixels_NCHW.max()) == 255
    twice = [load_data(DataConfig(name="generated", size=8, count=40, classes=4, seed=3)) for _ in range(2)]
    assert torch.equal(twice[0].train.pixels_NCHW, twice[1].train.pixels_NCHW)
    assert twice[0].train.manifest["content"] == twice[1].train.manifest["content"]
    other = load_data(DataConfig(name="generated", size=8, count=40, classes=4, seed=4))
    assert other.train.manifest["content"] != twice[0].train.manifest["content"]


def test_seeded_and_next_splits() -> None:
    whole = load_data(DataConfig(name="generated", size=4, count=100, val=0)).train
    seeded = load_data(DataConfig(name="generated", size=4, count=100, val=0.2))
    assert (len(seeded.train), len(seeded.val)) == (80, 20)
    rows = {tuple(row.flatten().tolist()) for row in seeded.train.pixels_NCHW}
    assert not rows & {tuple(row.flatten().tolist()) for row in seeded.val.pixels_NCHW}
    follow = load_data(DataConfig(name="generated", size=4, count=100, limit=50, val=10, split="next"))
    assert torch.equal(follow.train.pixels_NCHW, whole.pixels_NCHW[:50])
    assert torch.equal(follow.val.pixels_NCHW, whole.pixels_NCHW[50:60])
    assert follow.train.pixels_NCHW._base is not None, "a run of neighbours is a view"
    few = load_data(DataConfig(name="generated", size=4, count=100, limit=30, val=0.1))
    assert (len(few.train), len(few.val)) == (30, 3)
    assert few.train.manifest["content"] != seeded.train.manifest["content"]
    assert sum(few.train.manifest["counts"].values()) == 30
    c = int(few.train.labels_N[0])
    assert bool((few.train.labels_N[few.train.of_class(c)] == c).all())


def test_statistics_are_exact_and_can_be_given() -> None:
    images = load_data(DataConfig(name="generated", size=8, count=64, val=0)).train
    floats = images.pixels_NCHW.double() / 255
    known = channel_statistics(images.pixels_NCHW, chunk=7)
    assert np.allclose(known["mean"], floats.mean((0, 2, 3)))
    assert np.allclose(known["std"], floats.std((0, 2, 3), correction=0))
    given = load_data(DataConfig(name="generated", size=8, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)))
    assert given.train.statistics()[0].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert given.test.statistics()[1].tolist() == pytest.approx([1, 2, 3])


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "imagenet"},
        {"val": -1},
        {"val": 1.5},
        {"size": 0},
        {"channels": 2},
        {"max_bad": 2},
        {"mean": (0.5,)},
        {"name": "folder"},
        {"mean": (0.5,), "std": (0.0,)},
        {"resize": "stretch"},
        {"split": "random"},
    ],
)
def test_illegal_configs_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=r"data\."):
        parse(DataConfig, wrong, "data")


def test_a_missing_dataset_says_where_it_looked_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_DATA", "/nowhere")
    with pytest.raises(Refused, match=r"looked in /nowhere/cifar10, data/cifar10.*CIFAR10.*download=True"):
        load_data(DataConfig(name="cifar10"))
    with pytest.raises(Refused, match="train/WNID"):
        load_data(DataConfig(name="imagefruit", path="/nowhere"))


def test_odd_files_of_a_folder_are_counted_and_named(tmp_path: Path) -> None:
    plain_folder(tmp_path / "set")
    train = tmp_path / "set" / "train"
    put(train / "cat" / "grey.png", picture(1, mode="L"))
    put(train / "cat" / "alpha.png", picture(2, mode="RGBA"))
    put(train / "dog" / "print.jpg", picture(3, mode="CMYK", kind="jpeg"))
    put(train / "dog" / "short.jpg", picture(4, (64, 64), kind="jpeg")[:900])
    put(train / "dog" / "notes.txt", b"not a picture")
    put(train / "dog" / "empty.png", b"")
    put(train / "dog" / ".hidden", b"")
    config = {"name": "folder", "path": str(tmp_path / "set"), "size": 16, "val": 0}
    with pytest.raises(Refused, match=r"max_bad=0.01.*3 of 14.*notes.txt"):
        load_data(DataConfig(**config))
    loaded = load_data(DataConfig(**config, max_bad=0.5))
    assert loaded.train.spec.shape == (3, 16, 16)
    assert loaded.train.manifest["counts"] == {"cat": 6, "dog": 5}
    skipped = loaded.train.manifest["skipped"]
    assert {Path(one["name"]).name for one in skipped} == {"short.jpg", "notes.txt", "empty.png"}
    assert all(one["why"] for one in skipped)
    assert len(loaded.test) == 8 and loaded.train.classes == ("cat", "dog")


def test_a_folder_of_mixed_sizes_asks_for_one(tmp_path: Path) -> None:
    plain_folder(tmp_path / "set")
    put(tmp_path / "set" / "train" / "dog" / "z.png", picture(9, (20, 20)))
    with pytest.raises(Refused, match=r"data.size=None.*20x20"):
        load_data(DataConfig(name="folder", path=str(tmp_path / "set")))


def test_resize_rules() -> None:
    wide = np.zeros((10, 20, 3), np.uint8)
    wide[:, 5:15] = 255
    out = io.BytesIO()
    Image.fromarray(wide).save(out, "png")
    made = {rule: decode(out.getvalue(), Shape(10, 3, rule)) for rule in ("squash", "crop", "pad")}
    assert all(isinstance(one, np.ndarray) and one.shape == (3, 10, 10) for one in made.values())
    assert (made["crop"] == 255).all()
    assert 0.3 < np.mean(made["squash"] == 255) < 0.7
    assert (made["pad"][:, 0] == 0).all() and (made["pad"][:, 5, 5] == 255).all()  # type: ignore[index]


def test_a_folder_without_test_part_gives_up_a_fixed_share(tmp_path: Path) -> None:
    for c in ("a", "b"):
        for i in range(10):
            put(tmp_path / "set" / c / f"{i}.png", picture(i))
    loaded = load_data(DataConfig(name="folder", path=str(tmp_path / "set"), val=0))
    assert (len(loaded.train), len(loaded.test)) == (16, 4)


def test_tiny_imagenet_with_its_flat_validation_folder(tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    lines = []
    for c, wnid in enumerate(("n02", "n01", "n03")):
        for i in range(2):
            put(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", picture(10 * c + i, kind="jpeg"))
        put(root / "train" / wnid / f"{wnid}_boxes.txt", b"0 0 1 1")
        put(root / "val" / "images" / f"val_{c}.JPEG", picture(50 + c, kind="jpeg"))
        lines.append(f"val_{c}.JPEG\t{wnid}\t0\t0\t62\t62")
    put(root / "val" / "val_annotations.txt", "\n".join(lines).encode())
    loaded = load_data(DataConfig(name="tiny", path=str(root), val=0))
    assert loaded.train.classes == ("n01", "n02", "n03") and len(loaded.train) == 6
    assert loaded.test.labels_N.tolist() == [1, 0, 2]


def test_imagenet_subsets_keep_the_order_of_the_papers(tmp_path: Path) -> None:
    from rayd.data.sources.formats import SUBSETS

    assert all(len(set(ids.split())) == 10 for ids in SUBSETS.values())
    for part in ("train", "val"):
        for number in [*SUBSETS["imagewoof"].split(), "01440764"]:
            put(tmp_path / "in" / part / f"n{number}" / "a.JPEG", picture(int(number), (40, 24), kind="jpeg"))
    loaded = load_data(DataConfig(name="imagewoof", path=str(tmp_path / "in"), size=16, val=0))
    assert loaded.train.classes[:2] == ("n02096294", "n02093754") and len(loaded.train) == len(loaded.test) == 10


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_webdataset_tars(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for i in range(6):
        files |= {f"x/{i:03d}.png": picture(i), f"x/{i:03d}.cls": str(i % 3).encode(), f"x/{i:03d}.pyd": b"ignored"}
    write_tar(tmp_path / "w" / "train-000.tar", files)
    lonely = {"1.jpg": picture(9, kind="jpeg"), "1.json": json.dumps({"label": 2}).encode(), "2.png": picture(3)}
    write_tar(tmp_path / "w" / "val-000.tar", lonely)
    loaded = load_data(DataConfig(name="webdataset", path=str(tmp_path / "w"), val=0, max_bad=0.6))
    assert loaded.train.labels_N.tolist() == [0, 1, 2, 0, 1, 2] and loaded.test.labels_N.tolist() == [2]
    assert loaded.test.manifest["skipped"] == [{"name": "val-000.tar:2", "why": "no label"}]
    first = np.asarray(Image.open(io.BytesIO(picture(0))))
    assert np.array_equal(loaded.train.pixels_NCHW[0].permute(1, 2, 0).numpy(), first)


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_kind_are_read_as_tarfile_does(layout: int) -> None:
    from rayd.data.sources.tars import members

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=layout) as tar:
        for i, name in enumerate(("a.jpg", "d/b.cls", "folder/" * 18 + "long.png", "z.json")):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 300 * i, 1.5 if layout == tarfile.PAX_FORMAT else 1  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        known = [(member.name, member.offset_data, member.size) for member in tar if member.isfile()]
    assert list(members(io.BytesIO(out.getvalue()), "here")) == known
    damaged = bytearray(out.getvalue())
    damaged[3] ^= 1
    with pytest.raises(Refused, match="damaged at byte 0"):
        list(members(io.BytesIO(bytes(damaged)), "here"))


def test_parquet_in_the_hugging_face_layout(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "p"
    folder.mkdir()
    features = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    for part, n in (("train-00000-of-00002", 7), ("train-00001-of-00002", 5), ("test-00000-of-00001", 4)):
        rows = [{"bytes": picture(i), "path": None} for i in range(n)]
        table = pa.table({"image": rows, "label": [i % 2 for i in range(n)]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=3)
    loaded = load_data(DataConfig(name="parquet", path=str(folder), val=0))
    assert (len(loaded.train), len(loaded.test), loaded.train.classes) == (12, 4, ("no", "yes"))
    assert torch.equal(loaded.train.pixels_NCHW[1], loaded.train.pixels_NCHW[8])
    with pytest.raises(Refused, match=r"data.label_column=fine.*image \| label"):
        load_data(DataConfig(name="parquet", path=str(folder), label_column="fine"))


def test_what_torchvision_downloaded(tmp_path: Path) -> None:
    raw = tmp_path / "m" / "MNIST" / "raw"
    for stem, n in (("train", 6), ("t10k", 4)):
        head = bytes([0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 28, 0, 0, 0, 28])
        put(raw / f"{stem}-images-idx3-ubyte", head + bytes(n * 784))
        put(raw / f"{stem}-labels-idx1-ubyte", bytes([0, 0, 8, 1, 0, 0, 0, n]) + bytes(range(n)))
    loaded = load_data(DataConfig(name="mnist", path=str(tmp_path / "m"), val=0))
    assert loaded.train.spec == Spec((1, 28, 28), 10) and loaded.test.labels_N.tolist() == [0, 1, 2, 3]


def test_the_cache_is_used_and_rebuilt(tmp_path: Path, cache: Path) -> None:
    plain_folder(tmp_path / "set")
    config = DataConfig(name="folder", path=str(tmp_path / "set"), val=0)
    before = load_data(config).train
    (home,) = cache.iterdir()
    stamp = (home / "manifest.json").stat().st_mtime_ns
    assert load_data(config).train.manifest["content"] == before.manifest["content"]
    assert (home / "manifest.json").stat().st_mtime_ns == stamp
    (home / "train.npy").unlink()
    put(home / "train.npy", b"cut short")
    assert torch.equal(load_data(config).train.pixels_NCHW, before.pixels_NCHW)
    put(tmp_path / "set" / "train" / "cat" / "new.png", picture(77))
    assert len(load_data(config).train) == len(before) + 1, "another set of files is another dataset"
    assert not [path for path in cache.iterdir() if path.name.startswith(".")], "nothing half done is left"


def test_cifar10_is_the_one_everybody_knows() -> None:
    if "RAYD_DATA" not in os.environ:
        pytest.skip("RAYD_DATA is not set")
    began = time.perf_counter()
    loaded = load_data(DataConfig(name="cifar10", val=0))
    first = time.perf_counter() - began
    assert (len(loaded.train), len(loaded.test)) == (50000, 10000)
    mean, std = loaded.train.statistics()
    assert [round(v, 4) for v in mean.tolist()] == [0.4914, 0.4822, 0.4465]
    assert [round(v, 4) for v in std.tolist()] == [0.2470, 0.2435, 0.2616]
    began = time.perf_counter()
    again = load_data(DataConfig(name="cifar10"))
    assert again.train.classes[0] == "airplane" and time.perf_counter() - began < 2
    assert first < 60
