"""The layouts datasets come in, and where each dataset is looked for."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rayd.data.config import DataConfig
from rayd.data.images import seeded_order
from rayd.data.sources import bundled
from rayd.data.sources.decode import Array
from rayd.data.sources.listing import (
    Contents,
    Files,
    Format,
    Listing,
    Numbered,
    Source,
    by_files,
    choose,
    label_index,
    split_test,
)
from rayd.data.sources.parquet import Rows
from rayd.data.sources.places import Folder, place
from rayd.data.sources.tars import webdataset
from rayd.errors import refuse

SUBSETS = {
    "imagenette": "01440764 02102040 02979186 03000684 03028079 03394916 03417042 03425413 03445777 03888257",
    "imagewoof": "02096294 02093754 02111889 02088364 02086240 02089973 02087394 02115641 02099601 02105641",
    "imagefruit": "07753275 07753592 07745940 07747607 07749582 07768694 07753113 07720875 07718472 07742313",
    "imageyellow": "02206856 12057211 07753592 07749582 12144580 04146614 03530642 02129165 01773797 01531178",
    "imagemeow": "02123045 02123159 02123394 02123597 02124075 02129165 02129604 02128925 02128757 02127052",
    "imagesquawk": "01806143 02007558 01818515 02051845 02056570 01614925 01843383 01518878 01860187 01819313",
}
"""WordNet ids in MTT's order (label = position). NCFM's ImageFruit ends in custard apple, 07760859, instead."""


def parquet(files: Files, config: DataConfig) -> Source | None:
    """train*.parquet and test/val*.parquet, in this folder or in data/; or a single file."""
    found = [name for name in files.names() if name.endswith(".parquet")]
    chosen = choose(found, lambda name, word: Path(name).name.startswith(word))
    if not chosen["train"] and len(found) == 1:
        chosen = {"train": found}
    if not chosen["train"]:
        return None
    chosen = {part: names for part, names in chosen.items() if names}

    def contents() -> Contents:
        columns = {"data.image_column": config.image_column, "data.label_column": config.label_column}
        held = {part: Rows([files.open(name) for name in names]) for part, names in chosen.items()}
        for part, rows in held.items():
            for key, column in columns.items():
                if column not in rows.columns:
                    raise refuse(key, column, " | ".join(rows.columns), f"these are the columns of {chosen[part][0]}")
        labels = {part: rows.column(config.label_column) for part, rows in held.items()}
        named = held["train"].label_names(config.label_column)
        classes, index = label_index(named, [one for some in labels.values() for one in some], config)
        parts = {
            part: Listing(
                Numbered(chosen[part][0], len(rows)),
                [index[label] for label in labels[part]],
                _Fetch(rows, config.image_column),
            )
            for part, rows in held.items()
        }
        return Contents(classes, split_test(parts))

    return Source([files.stamp(name) for names in chosen.values() for name in names], contents, 3, files.where)


class _Fetch:
    def __init__(self, rows: Rows, column: str) -> None:
        self.rows, self.column = rows, column

    def __call__(self, start: int, stop: int) -> Iterator[bytes]:
        for value in self.rows.read(self.column, start, stop):
            yield (value.get("bytes") if isinstance(value, dict) else value) or b""


def folder(files: Files, config: DataConfig) -> Source | None:
    """One folder a class, under train/ and test/ or val/, or under the root. Every file is meant to be a picture."""
    everything = files.names()
    chosen = choose(everything, lambda name, word: name.startswith(f"{word}/") and name.count("/") >= 2)
    if not chosen["train"]:
        chosen = {"train": [f"./{name}" for name in everything if "/" in name]}
    seen = {name.split("/")[1] for name in chosen["train"]}
    wanted = [f"n{number}" for number in SUBSETS.get(config.name, "").split()]
    classes = tuple(wanted or sorted(seen))
    if len(classes) < 2 or not seen.issuperset(classes):
        return None
    index = {name: c for c, name in enumerate(classes)}
    parts = {part: _by_class(files, names, index) for part, names in chosen.items()}
    parts = {part: listing for part, listing in parts.items() if len(listing)}
    stamps = [files.stamp(name) for listing in parts.values() for name in listing.names]
    return Source(stamps, lambda: Contents(classes, split_test(parts)), 3, files.where)


def _by_class(files: Files, names: list[str], index: dict[str, int]) -> Listing:
    """The files of the classes that are wanted, class after class, sorted within each."""
    known = sorted((index[c], name) for name in names if (c := name.split("/")[1]) in index)
    return by_files(files, [name for _, name in known], [label for label, _ in known])


def tiny(files: Files, config: DataConfig) -> Source | None:
    """Tiny-ImageNet with its flat validation folder (val/images, val_annotations.txt), or sorted into classes."""
    held_out = files.names("val")
    if "val/val_annotations.txt" not in held_out:
        return folder(files, config)
    pictures = [name for name in files.names("train") if name.count("/") >= 2 and not name.endswith(".txt")]
    index = {name: c for c, name in enumerate(sorted({name.split("/")[1] for name in pictures}))}
    lines = [line.split("\t")[:2] for line in files.read("val/val_annotations.txt").decode().splitlines()]
    labels = {f"val/images/{name}": index[wnid] for name, wnid in lines if wnid in index}
    test = [name for name in held_out if name in labels]
    parts = {"train": _by_class(files, pictures, index), "test": by_files(files, test, [labels[name] for name in test])}
    stamps = [files.stamp(name) for listing in parts.values() for name in listing.names]
    return Source(stamps, lambda: Contents(tuple(index), parts), 3, files.where)


def prepared(files: Files, config: DataConfig) -> Source | None:
    """Shards that jobs.prepare wrote, laid out in the order of the split so that its parts are views."""
    if "manifest.json" not in files.names():
        return None
    manifest = json.loads(files.read("manifest.json"))
    if manifest.get("kind") != PREPARED:
        return None
    if config.size not in (None, manifest["size"]):
        raise refuse("data.size", config.size, f"{manifest['size']} or null for {files.where}", "or prepare it again")
    n = manifest["parts"]["train"]["rows"]
    n_val = int(config.val) if config.val >= 1 else round(config.val * n)
    order = [config.seed, n_val] if config.split == "seeded" and config.limit is None else None

    def contents() -> Contents:
        parts = {}
        for part, held in manifest["parts"].items():
            markers = [json.loads(files.read(f"{Path(name).stem}.json")) for name in held["shards"]]
            labels = np.concatenate([np.asarray(marker["labels"], np.int64) for marker in markers])
            index = np.arange(len(labels))
            if part == "train" and order:
                drawn = seeded_order(n, config.seed).numpy()
                index = np.concatenate([np.sort(drawn[:n_val]), np.sort(drawn[n_val:])])
            skipped = [one for marker in markers for one in marker["skipped"]]
            shards = _Shards(files, held["shards"], [len(marker["labels"]) for marker in markers], index)
            parts[part] = Listing(Numbered(part, len(labels)), labels[index].tolist(), shards, skipped)
        return Contents(tuple(manifest["classes"]), split_test(parts))

    identity = [files.stamp("manifest.json"), manifest["content"], order]
    return Source(identity, contents, manifest["channels"], files.where, order)


PREPARED = "rayd prepared images"


class _Shards:
    """Rows of mapped shard files in any order, each by its number in the whole part."""

    def __init__(self, files: Files, names: list[str], rows: list[int], index: np.ndarray[Any, Any]) -> None:
        self.files, self.names, self.index = files, names, index
        self.starts = np.cumsum([0, *rows])

    def __call__(self, start: int, stop: int) -> Iterator[Array]:
        opened: dict[int, Array] = {}
        for i in self.index[start:stop].tolist():
            shard = int(np.searchsorted(self.starts, i, side="right")) - 1
            if shard not in opened:
                opened = {shard: self._open(self.names[shard])}
            yield opened[shard][i - self.starts[shard]]

    def _open(self, name: str) -> Array:
        if isinstance(self.files, Folder):
            shard: Array = np.load(self.files.path / name, mmap_mode="r", allow_pickle=False)
        else:
            shard = np.load(io.BytesIO(self.files.read(name)), allow_pickle=False)
        return shard


HERE = ("digits", "generated")
"""Need no folder."""
FORMATS: dict[str, tuple[Format, ...]] = {
    "digits": (bundled.digits,),
    "generated": (bundled.generated,),
    **dict.fromkeys(bundled.TORCHVISION, (parquet, bundled.torchvision_set)),
    "tiny": (parquet, tiny),
    **dict.fromkeys(("imagenette128", *SUBSETS), (parquet, folder)),
    "folder": (folder,),
    "parquet": (parquet,),
    "webdataset": (webdataset,),
    "prepared": (prepared,),
}
ALSO = {
    "tiny": ("tiny-imagenet-200",),
    "imagenette": ("imagenette2", "imagenette2-320", "imagenette2-160", "imagenet"),
    "imagewoof": ("imagewoof2", "imagewoof2-320", "imagewoof2-160", "imagenet"),
    **dict.fromkeys(("imagefruit", "imageyellow", "imagemeow", "imagesquawk"), ("imagenet",)),
}
"""Other names under which people keep them."""
LAYOUTS = {
    "folder": "one folder of images a class, under train/ and val/ or alone",
    "parquet": "train*.parquet and test*.parquet",
    "webdataset": "*.tar",
    "prepared": "the manifest.json that jobs.prepare wrote",
}
"""Layouts rather than datasets: what the folder must hold."""
HOW = {
    **{
        name: f"python -c \"from torchvision.datasets import {cls} as D; D('data/{name}', {a}, download=True); "
        f"D('data/{name}', {b}, download=True)\""
        for name, (cls, _, _) in bundled.TORCHVISION.items()
        for a, b in [("'train'", "'test'") if name == "svhn" else (True, False)]
    },
    "tiny": "download tiny-imagenet-200.zip from cs231n.stanford.edu and unpack it there",
    "imagenette128": "put ImageNette at 128 px there, as train.parquet and val.parquet or as folders train/ and val/",
    "imagenette": "python -c \"from torchvision.datasets import Imagenette as D; D('data/imagenette', download=True)\"",
    "imagewoof": "unpack fastai's imagewoof2 there, or an ImageNet folder with train/WNID and val/WNID",
}


def find(config: DataConfig) -> Source:
    """The dataset in whichever layout it has, or a refusal that says where it was looked for and how to get it."""
    looked = places(config)
    for where in looked:
        files = Folder(Path()) if config.name in HERE else place(where)
        for read in FORMATS[config.name] if files else ():
            source = read(files, config) if files else None
            if source is not None:
                return source
    held = LAYOUTS.get(config.name, config.name)
    how = HOW.get(config.name, "put an ImageNet folder with train/WNID and val/WNID there")
    raise refuse(
        "data.path",
        config.path,
        f"a folder that holds {held}; looked in {', '.join(looked)}",
        "give data.path=..." if config.name in LAYOUTS else f"{how}, or give data.path=...",
    )


def places(config: DataConfig) -> list[str]:
    also = ALSO.get(config.name, ())
    if config.path is not None:
        bases, names = [config.path.rstrip("/")], ("", config.name, *also)
    else:
        roots = [os.environ.get("RAYD_DATA"), "data"]
        bases, names = [root.rstrip("/") for root in roots if root], (config.name, *also)
    found = [f"{base}/{name}".rstrip("/") for base in bases for name in names]
    return list(dict.fromkeys([*found, *(f"{one}/{name}" for one in found for name in also if name not in one)]))
