"""Ten folders of images as people have them: each odd in one way."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Pixels = np.ndarray[Any, Any]


def pattern(c: int, i: int, size: tuple[int, int] = (32, 32), channels: int = 3) -> Pixels:
    """A class is a smooth pattern of its own, an image one noisy copy: learnable, and no two alike."""
    rng = np.random.default_rng([c, 0])
    coarse = rng.integers(40, 200, (4, 4, channels)).astype(np.uint8)
    picture = Image.fromarray(coarse[..., 0] if channels == 1 else coarse).resize(size, Image.Resampling.BILINEAR)
    noise = np.random.default_rng([c, i + 1]).integers(0, 50, (size[1], size[0], channels))
    smooth = np.asarray(picture).reshape(size[1], size[0], channels)
    return np.squeeze(smooth + noise.astype(np.uint8), 2) if channels == 1 else smooth + noise.astype(np.uint8)


def file(pixels: Pixels, kind: str = "png") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def plain(root: Path, sizes: dict[str, int], size: tuple[int, int] = (32, 32)) -> None:
    for c, (name, n) in enumerate(sizes.items()):
        for i in range(n):
            put(root / name / f"{i:04d}.png", file(pattern(c, i, size)))


def imbalanced(root: Path) -> None:
    plain(root, {"common": 400, "rare": 4})


def single(root: Path) -> None:
    plain(root, {f"class{c}": 1 for c in range(10)})


def deep_grey(root: Path) -> None:
    """Scans of 12 bits in files of 16."""
    for c, name in enumerate(("bone", "lung", "skin")):
        for i in range(60):
            grey = pattern(c, i, (28, 28), 1).astype(np.uint16) * 16
            put(root / name / f"{i}.png", file(grey))


def oblong(root: Path) -> None:
    plain(root, {"tall": 60, "wide": 60}, (31, 57))


def corrupted(root: Path) -> None:
    plain(root, {"left": 100, "right": 100})
    for i in range(0, 100, 10):
        path = root / "left" / f"{i:04d}.png"
        path.write_bytes(path.read_bytes()[:200])


def names(root: Path) -> None:
    plain(root, {"l'été": 60, 'say "hi"': 60, "猫": 60, "a, b; c = {d}": 60})


def many(root: Path) -> None:
    plain(root, {f"kind{c:03d}": 6 for c in range(500)}, (16, 16))


def labels_in_a_table(root: Path) -> None:
    rows = ["file_name,label"]
    for c, name in enumerate(("cat", "dog", "owl")):
        for i in range(60):
            put(root / "images" / f"{c}_{i}.jpg", file(pattern(c, i, (48, 48)), "jpeg"))
            rows.append(f"{c}_{i}.jpg,{name}")
    put(root / "labels.csv", "\n".join(rows).encode())


def saved(root: Path) -> None:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=["a", "b", "c"])})
    parts = {}
    for part, n, start in (("train", 180, 0), ("test", 60, 1000)):
        rows = [(i % 3, start + i) for i in range(n)]
        columns = {"img": [Image.fromarray(pattern(c, i)) for c, i in rows], "fine": [c for c, _ in rows]}
        parts[part] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(root))


def duplicates(root: Path) -> None:
    for part, start, n in (("train", 0, 80), ("test", 70, 30)):
        for c, name in enumerate(("up", "down")):
            for i in range(start, start + n):
                put(root / part / name / f"{i}.png", file(pattern(c, i)))


ODD: dict[str, Callable[[Path], None]] = {
    "imbalanced 1:100": imbalanced,
    "1 image a class": single,
    "16-bit grey": deep_grey,
    "31x57 px": oblong,
    "corrupted 5 %": corrupted,
    "quotes and Unicode in names": names,
    "500 classes": many,
    "labels in a CSV": labels_in_a_table,
    "saved by datasets": saved,
    "test images in train": duplicates,
}
