"""Which dataset a run uses, and how it is split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, get_args

from rayd.choices import plugins
from rayd.errors import refuse
from rayd.schema import DERIVED, read

Name = Literal[
    "digits",
    "cifar10",
    "cifar100",
    "svhn",
    "mnist",
    "fashion",
    "tiny",
    "imagenette128",
    "imagenette",
    "imagewoof",
    "imagefruit",
    "imageyellow",
    "imagemeow",
    "imagesquawk",
    "folder",
    "parquet",
    "webdataset",
    "prepared",
    "generated",
]
NAMES: tuple[str, ...] = get_args(Name)
NEUTRAL: dict[str, Any] = {"bits": 16, "balance": False}
"""Values at which a key decides nothing: left out of a run's identity, so that older runs keep theirs."""
NEED_PATH = ("folder", "parquet", "webdataset", "prepared")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which dataset, where it is, and how it is split."""

    name: str = "digits"
    """A dataset, a layout, or a format of the folder `methods`."""
    path: str | None = None
    """Folder of the dataset; null: $RAYD_DATA/NAME, then data/NAME and data/ here."""
    size: int | None = None
    """Side in pixels; null: the dataset's own."""
    channels: Literal[1, 3] | None = None
    """null: the dataset's own (grey for digits and MNIST, else RGB)."""
    resize: Literal["squash", "crop", "pad"] = "squash"
    """What happens to the aspect ratio: the whole image squashed, its middle cut out, or borders added."""
    bits: int = 16
    """Of 16-bit images that are in use (12 for many scanners); the upper 8 of them are kept."""
    balance: bool = False
    """Whether images of small classes count several times, in training and in scores, so that all classes weigh alike."""
    val: float = 0.1
    """Validation images: a share of the training set below 1, else a count."""
    split: Literal["seeded", "next"] = "seeded"
    """seeded: validation images are drawn; next: they are the rows after `limit` (for sets already shuffled)."""
    limit: int | None = None
    """At most this many training images."""
    seed: int = 0
    """Of the split, and of generated images."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Statistics to normalise by, instead of the training images' own."""
    max_bad: float = 0.01
    """Largest share of files that are no readable images; more is refused."""
    image_column: str = "image"
    label_column: str = "label"
    """Columns of parquet, of saved datasets and of tables of labels; where they have another name, the only ones of the
    kind."""
    count: int = 512
    classes: int = 10
    """generated: training images (half as many test images) and classes."""
    own: plugins.Own | None = field(default=None, metadata=DERIVED)
    """A format of one's own."""

    @classmethod
    def from_plain(cls, mapping: Mapping[str, Any], where: str = "data") -> DataConfig:
        return read(cls, mapping, where, {"own": plugins.own("formats", mapping.get("name"), NAMES)})

    def __post_init__(self) -> None:
        if self.own is None and self.name not in NAMES:
            near = get_close_matches(self.name, NAMES, n=1)
            raise refuse("data.name", self.name, " | ".join(NAMES), f"did you mean {near[0]}?" if near else "")
        if self.path is None and self.name in NEED_PATH:
            raise refuse("data.path", None, f"the folder to read {self.name} from", "give data.path=...")
        if self.val < 0 or (self.val > 1 and self.val != int(self.val)):
            raise refuse("data.val", self.val, "a share from 0 to below 1, or a whole number of images")
        for key, least in (("size", 4), ("limit", 1), ("count", 1), ("classes", 2)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise refuse(f"data.{key}", value, f"a whole number of at least {least}")
        if not 8 <= self.bits <= 16:
            raise refuse("data.bits", self.bits, "8 to 16")
        if not 0 <= self.max_bad <= 1:
            raise refuse("data.max_bad", self.max_bad, "a share from 0 to 1")
        if (self.mean is None) != (self.std is None):
            raise refuse("data.mean", self.mean, "given together with data.std, or not at all")
        if self.std is not None and min(self.std) <= 0:
            raise refuse("data.std", self.std, "numbers above 0")


def deciding_keys(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A config of data as plain values, without the keys that decide nothing."""
    return {key: value for key, value in plain.items() if NEUTRAL.get(key, ...) != value}
