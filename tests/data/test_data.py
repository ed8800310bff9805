"""Datasets: every layout, splits by plan, bad files by name, the cache."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rayd.data.config import DataConfig
from rayd.data.images import Images, Pixels, Spec, histogram, statistics_of
from rayd.data.load import _opened as opened
from rayd.data.load import load as load_data
from rayd.data.sources.decode import Shape, decode
from rayd.errors import Refused
from rayd.schema import parse


@pytest.fixture(autouse=True)
def place(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder and a cache with nothing in them."""
    monkeypatch.chdir(tmp_path)


def make(n: int = 40, classes: int = 4, size: int = 6) -> Images:
    rng = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, 3, size, size), generator=rng, dtype=torch.uint8)
    labels = torch.randint(0, classes, (n,), generator=rng)
    return Images(pixels, labels, tuple(map(str, range(classes))), "random", {"content": "x"})


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
    assert int(splits.train.pixels_NCHW[:].max()) == 255
    twice = []
    for _ in range(2):
        twice.append(load_data(DataConfig(name="generated", size=8, count=40, classes=4, seed=3)))
        opened.clear()
    assert torch.equal(twice[0].train.pixels_NCHW[:], twice[1].train.pixels_NCHW[:])
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
    known = statistics_of(histogram(images.pixels_NCHW, chunk=7))
    assert np.allclose(known["mean"], floats.mean((0, 2, 3)))
    assert np.allclose(known["std"], floats.std((0, 2, 3), correction=0))
    given = load_data(DataConfig(name="generated", size=8, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)))
    assert given.train.statistics()[0].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert given.test.statistics()[1].tolist() == pytest.approx([1, 2, 3])


def test_a_split_is_a_view_that_reads_like_the_copy() -> None:
    images = make()
    rows = torch.tensor([3, 1, 1, 39, 20])
    some = images.select(rows)
    assert isinstance(some.pixels_NCHW, Pixels) and some.pixels_NCHW.files[0] is images.pixels_NCHW
    copy = images.pixels_NCHW[rows]
    assert torch.equal(some.pixels_NCHW[:], copy) and torch.equal(some.pixels_NCHW[3], copy[3])
    mask = torch.tensor([True, False, True, False, True])
    for key in (slice(1, 4), mask, torch.tensor([[4, 0], [2, 2]]), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(some.pixels_NCHW[key], copy[key])
    again = some.select(torch.tensor([4, 0]))
    assert (
        torch.equal(again.pixels_NCHW[:], copy[[4, 0]]) and again.labels_N.tolist() == images.labels_N[[20, 3]].tolist()
    )
    files = images.pixels_NCHW.split([7, 1, 32])
    assert torch.equal(Pixels(files).select(rows)[:], copy) and Pixels(files).shape == images.pixels_NCHW.shape


def test_classes_are_indexed_once_and_samples_keep_their_shares() -> None:
    images = make(1000)
    for c in range(4):
        assert images.of_class(c).tolist() == (images.labels_N == c).nonzero().flatten().tolist()
    assert images.of_class(2) is images.of_class(2)
    by_class = images.select(images.labels_N.argsort(stable=True))
    few = by_class.sample(99)
    assert len(few) == 99 and all(abs(len(few.of_class(c)) - 99 * len(images.of_class(c)) / 1000) < 1 for c in range(4))
    assert torch.equal(few.labels_N, few.labels_N.sort().values), "in the order of the set"
    assert (
        few.manifest["content"] == by_class.sample(99).manifest["content"] != by_class.sample(99, 1).manifest["content"]
    )
    assert by_class.sample(1000) is by_class


def test_a_training_splits_histogram_is_the_sets_less_the_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    images = make(50)
    images = replace(images, known_histogram_CV=histogram(images.pixels_NCHW))
    before = json.dumps(images.manifest)
    train, val = (
        images.select(torch.arange(0, 50, 5).flip(0)),
        images.select(torch.tensor([i for i in range(50) if i % 5])),
    )
    read: list[int] = []

    def counted(pixels: Any, chunk: int | None = None) -> Any:
        read.append(len(pixels))
        return histogram(pixels, chunk)

    monkeypatch.setattr("rayd.data.images.histogram", counted)
    for part in (train, val):
        assert np.array_equal(part.histogram_CV, histogram(part.pixels_NCHW))
        exact = part.pixels_NCHW[:].double().div(255).mean((0, 2, 3))
        assert torch.allclose(part.statistics()[0].double(), exact)
        assert part.facts(True)["statistics"]["mean"] == pytest.approx(exact.tolist())
        assert "statistics" not in part.facts(False)
    assert read == [10, 10], "the smaller side is read, once"
    monkeypatch.setattr("rayd.data.images.KEPT", 0)
    for _ in range(2):
        again = images.select(torch.tensor([i for i in range(50) if i % 5]))
        assert np.array_equal(again.histogram_CV, val.histogram_CV)
    assert read == [10, 10, 10], "a large set's is kept for the next process"
    assert json.dumps(images.manifest) == before and "statistics" not in train.manifest


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
    for at in (3, known[1][1] - 512 + 3):
        damaged = bytearray(out.getvalue())
        damaged[at] ^= 1
        with pytest.raises(Refused, match=f"damaged at byte {0 if at == 3 else ''}"):
            list(members(io.BytesIO(bytes(damaged)), "here"))
    with pytest.raises(Refused, match="damaged at byte"):
        list(members(io.BytesIO(out.getvalue()[: known[3][1] + 100]), "here"))


def header(name: str, size: bytes, kind: bytes = b"0", data: bytes = b"") -> bytes:
    """One tar header with any size field, right checksum included, and what follows it."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108], block[124:136], block[156:157] = b"0000644\0", size.ljust(12, b"\0"), kind
    block[257:265], block[148:156] = b"ustar\x0000", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


def negative(size: int) -> bytes:
    return b"\xff" + (size % 2**88).to_bytes(11, "big")


CRAFTED = {
    "a pax record of no length": header("p", b"%011o" % 10, b"x", b"0 size=1\n\n") + header("a.jpg", b"%011o" % 1),
    "a negative size": header("a.jpg", b"%011o" % 0) + header("b.jpg", negative(-1536)),
    "a first member of negative size": header("a.jpg", negative(-1024)) * 2,
    "a pax header of negative size": header("p", negative(-512), b"x") + header("a.jpg", b"%011o" % 0),
    "a pax size that is negative": header("p", b"%011o" % 14, b"x", b"14 size=-1536\n") + header("a.jpg", b"%011o" % 0),
    "a pax header of a gigabyte": header("p", b"%011o" % 2**30, b"x"),
    "a long name of a gigabyte": header("p", b"%011o" % 2**30, b"L"),
    "a thousand headers for one member": header("p", b"%011o" % 11, b"x", b"11 path=ab\n") * 3000 + header("a", b"0"),
    "a member that goes on behind the end": header("a.jpg", b"%011o" % 2**33, data=b"short"),
    "a size of thirty digits": header("a.jpg", b"\x80" + b"\xff" * 11),
    "no tar": b"these are no headers" * 100,
    "an empty file": b"",
}


@pytest.mark.parametrize("what", CRAFTED)
def test_crafted_tars_are_refused_at_once(what: str, tmp_path: Path) -> None:
    put(tmp_path / "set" / "train-0.tar", CRAFTED[what])
    began = time.perf_counter()
    with pytest.raises(Refused, match=r"train-0\.tar.*damaged at byte"):
        load_data(DataConfig(name="webdataset", path=str(tmp_path / "set")))
    assert time.perf_counter() - began < 1


def test_mutated_tars_are_read_or_refused() -> None:
    from rayd.data.sources.tars import members

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(4):
            info = tarfile.TarInfo("folder/" * (18 * (i % 2)) + f"{i}.jpg")
            info.size, info.mtime = 600 * i, 1.5  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    rng, refused = np.random.default_rng(0), 0
    for _ in range(1500):
        data = bytearray(out.getvalue())
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            data[at] = rng.integers(0, 256)
        for start in range(0, len(data), 512):  # a right checksum, so that what lies behind it is tried
            block = data[start : start + 512]
            if rng.integers(2) and block[257:262] == b"ustar":
                data[start + 148 : start + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
        try:
            for _, offset, size in members(io.BytesIO(bytes(data)), "here"):
                assert offset >= 0 and size >= 0 and offset + size <= len(data)
        except Refused:
            refused += 1
    assert 100 < refused < 1500


def test_hostile_labels_and_bombs_are_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayd.data.sources.tars import _label

    assert _label(b"9" * 5000, "cls") == "9" * 5000, "no number of five thousand digits"
    assert _label(b"[" * 100000, "json") is None
    assert _label(b"7", "cls") == 7 and _label(b'{"label": 3}', "json") == 3
    write_tar(
        tmp_path / "w" / "train.tar", {"1.png": picture(1), "1.cls": b"999999999", "2.png": picture(2), "2.cls": b"0"}
    )
    with pytest.raises(Refused, match="labels from 0 to 999999, not 0 to 999999999"):
        load_data(DataConfig(name="webdataset", path=str(tmp_path / "w")))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    assert "16x16 is more than 200 pixels" in str(decode(picture(1), Shape(8, 3, "squash")))
    assert isinstance(decode(picture(1, (10, 10)), Shape(8, 3, "squash")), np.ndarray)


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
    assert load_data(config).train is before, "a process opens a dataset once"
    (home / "train.npy").unlink()
    put(home / "train.npy", b"cut short")
    opened.clear()
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


def test_a_sample_has_every_class_alike() -> None:
    """Images lie class after class, as folders are listed: the first 60 of them would be of one class."""
    labels = torch.arange(20).repeat_interleave(50)
    pixels = torch.arange(1000, dtype=torch.int32).remainder(256).to(torch.uint8).view(1000, 1, 1, 1)
    images = Images(pixels, labels, tuple(map(str, range(20))), "sorted", {"content": "sorted"})
    sample = images.sample(60, seed=3)
    assert torch.bincount(sample.labels_N, minlength=20).tolist() == [3] * 20
    assert torch.equal(sample.pixels_NCHW[:], images.sample(60, seed=3).pixels_NCHW[:])
    assert not torch.equal(sample.pixels_NCHW[:], images.sample(60, seed=4).pixels_NCHW[:])
    assert len(images.sample(2000, seed=0)) == 1000
