"""A folder of one's own to try things on: ImageNette shrunk to small pictures, as files by class.

    python examples/shrink.py TO [SIDE]
    python -m jobs.auto data=folder data.path=TO budget.bytes=200kB hours=0.5

Reads ImageNette where `data=imagenette128` finds it (RAYD_DATA).
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from rayd.data.config import DataConfig
from rayd.data.load import load


def shrunk(to: Path, side: int = 64, most: int | None = None) -> None:
    """TO/train and TO/test; `most`: pictures of each part, every class alike."""
    splits = load(DataConfig(name="imagenette128", size=side))
    for part, images in (("train", splits.train), ("train", splits.val), ("test", splits.test)):
        for number, (pixels_CHW, label) in enumerate(zip(images.pixels_NCHW, images.labels_N, strict=True)):
            if number == most:
                break
            path = to / part / images.classes[int(label)] / f"{images.name}-{len(images)}-{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels_CHW.permute(1, 2, 0).numpy()).save(path)


if __name__ == "__main__":
    shrunk(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 64)
