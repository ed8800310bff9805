"""The layouts datasets come in, and where each dataset is looked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rayd.data.config import DataConfig
from rayd.data.sources import bundled
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
from rayd.data.sources.parquet import Rows, columns_of, names_of
from rayd.data.sources.places import WHOLE, Bucket, Folder
from rayd.data.sources.prepared import prepared
from rayd.data.sources.saved import saved
from rayd.data.sources.table import table
from rayd.data.sources.tars import PICTURES, webdataset
from rayd.data.sources.tensors import tensors
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
    tables = [name for name in files.names() if name.endswith(".parquet")]
    chosen = choose(tables, lambda name, word: Path(name).name.startswith(word))
    if not chosen["train"] and len(tables) == 1:
        chosen = {"train": tables}
    if not chosen["train"]:
        return None
    chosen = {part: names for part, names in chosen.items() if names}

    def contents() -> Contents:
        rows = {part: Rows([files.open(name) for name in names], files.where) for part, names in chosen.items()}
        features, known = rows["train"].features, rows["train"].columns
        image, label = columns_of(features, known, config, chosen["train"][0])
        labels = {part: table.column(label) for part, table in rows.items()}
        every = [value for column in labels.values() for value in column]
        classes, number = label_index(names_of(features, label), every, config)
        parts = {
            part: Listing(
                Numbered(chosen[part][0], len(table)),
                [number[value] for value in labels[part]],
                partial(table.pictures, image),
            )
            for part, table in rows.items()
        }
        return Contents(classes, split_test(parts, config.name == "folder"))

    stamps = [files.stamp(name) for names in chosen.values() for name in names]
    return Source(stamps, contents, 3, files.where, layout="parquet with pictures in it")


def folder(files: Files, config: DataConfig) -> Source | None:
    """One folder a class, under train/ and test/ or val/, or under the root. Every file is meant to be a picture."""
    names = files.names()
    chosen = choose(names, lambda name, word: name.lower().startswith(f"{word}/") and name.count("/") >= 2)
    if not chosen["train"]:
        chosen = {"train": [f"./{name}" for name in names if "/" in name]}
    folders = {name.split("/")[1] for name in chosen["train"]}
    subset = [f"n{number}" for number in SUBSETS.get(config.name, "").split()]
    classes = tuple(subset or sorted(folders))
    if len(classes) < 2 or not folders.issuperset(classes):
        return None
    index = {name: c for c, name in enumerate(classes)}
    parts = {part: _by_class(files, names, index) for part, names in chosen.items()}
    parts = {part: listing for part, listing in parts.items() if len(listing)}
    stamps = [files.stamp(name) for listing in parts.values() for name in listing.names]
    return Source(
        stamps,
        lambda: Contents(classes, split_test(parts, config.name == "folder")),
        3,
        files.where,
        layout="a folder a class",
    )


def _by_class(files: Files, names: list[str], index: dict[str, int]) -> Listing:
    """The files of the classes that are wanted, class after class, sorted within each."""
    labelled = sorted((index[c], name) for name in names if (c := name.split("/")[1]) in index)
    return by_files(files, [name for _, name in labelled], [label for label, _ in labelled])


def any_layout(files: Files, config: DataConfig) -> Source | None:
    """A folder of one's own, in whichever layout it is."""
    named = isinstance(files, Folder) and bool(files.only)
    pictures = [name for name in files.names() if name.rpartition(".")[2].lower() in PICTURES]
    files_of_data = (tensors, parquet, webdataset)
    by_class: tuple[Format, ...] = () if named else (folder,)
    order: tuple[Format, ...] = (*by_class, *files_of_data) if pictures else (*files_of_data, *by_class)
    for read in (saved, table, *order):
        source = read(files, config)
        if source is not None:
            return source
    return None


def tiny(files: Files, config: DataConfig) -> Source | None:
    """Tiny-ImageNet with its flat validation folder (val/images, val_annotations.txt), or sorted into classes."""
    val = files.names("val")
    if "val/val_annotations.txt" not in val:
        return folder(files, config)
    pictures = [name for name in files.names("train") if name.count("/") >= 2 and not name.endswith(".txt")]
    index = {name: c for c, name in enumerate(sorted({name.split("/")[1] for name in pictures}))}
    lines = [line.split("\t")[:2] for line in files.read("val/val_annotations.txt").decode().splitlines()]
    labels = {f"val/images/{name}": index[wnid] for name, wnid in lines if wnid in index}
    test = [name for name in val if name in labels]
    parts = {"train": _by_class(files, pictures, index), "test": by_files(files, test, [labels[name] for name in test])}
    stamps = [files.stamp(name) for listing in parts.values() for name in listing.names]
    return Source(stamps, lambda: Contents(tuple(index), parts), 3, files.where)


HERE = ("digits", "generated")
"""Need no folder."""
FORMATS: dict[str, tuple[Format, ...]] = {
    "digits": (bundled.digits,),
    "generated": (bundled.generated,),
    **dict.fromkeys(bundled.TORCHVISION, (parquet, bundled.torchvision_set)),
    "tiny": (parquet, tiny),
    **dict.fromkeys(("imagenette128", *SUBSETS), (parquet, folder)),
    "folder": (any_layout,),
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
    "folder": (
        "a folder of images for each class, alone or under train/ and test/; images beside a CSV or parquet of files and "
        "labels; what datasets saved; tensors named images and labels (.npz, .npy, .safetensors, not .pt); parquet; tars"
    ),
    "parquet": "train*.parquet and test*.parquet",
    "webdataset": "*.tar",
    "prepared": "the manifest.json that jobs.prepare wrote",
}
"""Layouts rather than datasets: what the folder must hold."""
TORCHVISION = 'python -c "from torchvision.datasets import {}"'
HOW = {
    "cifar10": TORCHVISION.format("CIFAR10 as D; [D('data/cifar10', train, download=True) for train in (True, False)]"),
    "cifar100": TORCHVISION.format(
        "CIFAR100 as D; [D('data/cifar100', train, download=True) for train in (True, False)]"
    ),
    "svhn": TORCHVISION.format("SVHN as D; [D('data/svhn', part, download=True) for part in ('train', 'test')]"),
    "mnist": TORCHVISION.format("MNIST as D; [D('data/mnist', train, download=True) for train in (True, False)]"),
    "fashion": TORCHVISION.format(
        "FashionMNIST as D; [D('data/fashion', train, download=True) for train in (True, False)]"
    ),
    "imagenette": TORCHVISION.format("Imagenette as D; D('data/imagenette', download=True)"),
    "tiny": "download tiny-imagenet-200.zip from cs231n.stanford.edu and unpack it there",
    "imagenette128": "put ImageNette at 128 px there, as train.parquet and val.parquet or as folders train/ and val/",
    "imagewoof": "unpack fastai's imagewoof2 there, or an ImageNet folder with train/WNID and val/WNID",
}
"""How each dataset is obtained."""


def find(config: DataConfig) -> Source:
    """The dataset in whichever layout it has, or a refusal that says where it was looked for and how to get it."""
    where = places(config)
    if config.name in HERE:
        folders: Iterator[Files | None] = iter([Folder(Path())])
    else:
        folders = map(place, where)
    for files in folders:
        for read in ((config.own.thing,) if config.own else FORMATS[config.name]) if files else ():
            source = read(files, config) if files else None
            if source is not None:
                return source
    layout = LAYOUTS.get(config.name, config.name)
    how = HOW.get(config.name, "put an ImageNet folder with train/WNID and val/WNID there")
    raise refuse(
        "data.path",
        config.path,
        f"a folder that holds {layout}; looked in {', '.join(where)}",
        "give data.path=..." if config.name in LAYOUTS else f"{how}, or give data.path=...",
    )


def place(where: str | Path) -> Files | None:
    """The folder, or the file of a dataset in its folder; None where there is none."""
    text = str(where).removeprefix("file://")
    if "://" in text:
        bucket = Bucket(text.rstrip("/"))
        return bucket if bucket.infos else None
    path = Path(text).expanduser()
    if path.is_file() and path.name.endswith(WHOLE):
        return Folder(path.parent, path.name)
    return Folder(path) if path.is_dir() else None


def places(config: DataConfig) -> list[str]:
    also = ALSO.get(config.name, ())
    if config.path is not None:
        bases, names = [config.path.rstrip("/")], ("", config.name, *also)
    else:
        roots = [os.environ.get("RAYD_DATA"), "data"]
        bases, names = [root.rstrip("/") for root in roots if root], (config.name, *also)
    folders = [f"{base}/{name}".rstrip("/") for base in bases for name in names]
    below = [f"{folder}/{name}" for folder in folders for name in also if name not in folder]
    return list(dict.fromkeys([*folders, *below]))
