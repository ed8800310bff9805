"""An artifact as files that others read without us: parquet, WebDataset, folders of images, tensors for the field's scripts.

A codec that stores image files (jpeg) exports those. Other renderings are larger than what is stored, and one of 8 bits
clips: `png` and `exact` are two views with a score each, and every export says which one it is and how many bytes it takes
beside the artifact's. Stored files are the exact view.

`images.pt`, `labels.pt` and `lr.pt` are the one place where torch's own format is written, because those scripts ask for
it: plain tensors only, readable with `weights_only=True`. Nothing here is ever read back.

Shapes: N images, K classes.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rayd.artifact.card import escaped, percent, size_category, title
from rayd.artifact.load import Artifact, load
from rayd.artifact.png import png
from rayd.choices import plugins
from rayd.errors import Refused, refuse
from rayd.nets.convnet import NetConfig
from rayd.schema import parse
from rayd.store import Store

log = logging.getLogger(__name__)

FORMATS = ("parquet", "webdataset", "folder", "tensors")
VIEWS = ("png", "exact")
LOSS = 0.01
"""Of accuracy, from which on what clipping costs is said."""


def export(
    source: str | Artifact, to: str, format: str = "parquet", view: str = "png", methods: str | None = None
) -> list[str]:
    """Write an artifact, or the one at a place, under `to`; the names written. A target that holds something else is
    refused. `methods`: the folder of a codec of one's own."""
    artifact = source if isinstance(source, Artifact) else load(source, methods)
    contents = rendered(artifact, format, view)
    store = Store(to)
    for name, data in contents.items():
        if name != "README.md" and store.exists(name) and store.read(name) != data:
            raise Refused(f"to={to}: {name} is there already and differs; give another folder, or remove that one")
    for name, data in contents.items():
        store.write(name, data)
    return list(contents)


def rendered(artifact: Artifact, format: str, view: str = "png") -> dict[str, bytes]:
    """File names and their contents."""
    if format not in FORMATS:
        raise refuse("format", format, " | ".join(FORMATS))
    if view not in VIEWS:
        raise refuse("view", view, " | ".join(VIEWS))
    if view == "exact" and format != "tensors":
        raise refuse("view", view, "png for images, which hold 8 bits", "format=tensors keeps exact values")
    if format != "tensors" and artifact.spec.shape[0] not in (1, 3):
        raise refuse("format", format, "tensors, for images of other than 1 or 3 channels")
    if format == "tensors":
        contents = _tensors(artifact, view)
    else:
        writer: Mapping[str, Callable[[Artifact, list[bytes], str], dict[str, bytes]]] = {
            "parquet": _parquet, "webdataset": _webdataset, "folder": _folder,
        }  # fmt: skip
        files = artifact.codec.files()
        images = [png(image) for image in artifact.images("uint8")] if files is None else files
        contents = writer[format](artifact, images, "png" if files is None else "jpg")
        view = view if files is None else "files"
    if view == "png" and (warning := lost(artifact)):
        log.warning("export: %s", warning)
    size = sum(map(len, contents.values()))
    return {**contents, "README.md": _readme(artifact, format, view, size).encode()}


def lost(artifact: Artifact) -> str:
    """What a picture of 8 bits loses of the set, where that is a point or more; empty where it is less or not known."""
    for key, exact in sorted(artifact.card["scores"].items()):
        cut = artifact.card["scores"].get(key.replace("distilled/", "distilled-8bit/", 1))
        if key.startswith("distilled/") and cut and exact["mean"] - cut["mean"] >= LOSS:
            kept = f"{percent(exact)} as it is stored, which format=tensors view=exact keeps"
            return f"as pictures of 8 bits it has {percent(cut)}, {kept}"
    return ""


def soft_labels(artifact: Artifact) -> Tensor | None:
    """Label probabilities [N, K] where the artifact stores more than classes."""
    return artifact.targets if artifact.has_soft_labels else None


def _parquet(artifact: Artifact, images: list[bytes], ending: str) -> dict[str, bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: dict[str, Any] = {
        "image": pa.array([{"bytes": image, "path": f"{i:05d}.{ending}"} for i, image in enumerate(images)], picture),
        "label": pa.array(artifact.labels.tolist(), pa.int64()),
    }
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(artifact.classes), "_type": "ClassLabel"},
    }
    soft = soft_labels(artifact)
    if soft is not None:
        columns["soft_label"] = pa.array(list(soft.half().numpy()), pa.list_(pa.float16()))
        features["soft_label"] = {"feature": {"dtype": "float16", "_type": "Value"}, "_type": "List"}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    out = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(about), out, compression="zstd")
    return {"data/train-00000-of-00001.parquet": out.getvalue()}


def _webdataset(artifact: Artifact, images: list[bytes], ending: str) -> dict[str, bytes]:
    soft, out = soft_labels(artifact), io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i, (image, label) in enumerate(zip(images, artifact.labels.tolist(), strict=True)):
            about: dict[str, Any] = {"label": label, "class": artifact.classes[label]}
            if soft is not None:
                about["soft_label"] = [round(v, 6) for v in soft[i].tolist()]
            parts = {ending: image, "cls": str(label).encode(), "json": json.dumps(about).encode()}
            for part, data in parts.items():
                entry = tarfile.TarInfo(f"{i:05d}.{part}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return {"train-00000.tar": out.getvalue()}


def _folder(artifact: Artifact, images: list[bytes], ending: str) -> dict[str, bytes]:
    """A folder for each class; learned labels in `metadata.jsonl`, as an image folder of `datasets` has them."""
    folders, labels = [f"{c:03d}_{_plain(name)}" for c, name in enumerate(artifact.classes)], artifact.labels.tolist()
    names = [f"{folders[label]}/{i:05d}.{ending}" for i, label in enumerate(labels)]
    soft = soft_labels(artifact)
    if soft is None:
        return dict(zip(names, images, strict=True))
    rows = [
        {"file_name": name, "label": label, "soft_label": [round(v, 6) for v in row]}
        for name, label, row in zip(names, labels, soft.tolist(), strict=True)
    ]
    about = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return {**dict(zip(names, images, strict=True)), "metadata.jsonl": about}


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name[:50])


def _tensors(artifact: Artifact, view: str) -> dict[str, bytes]:
    """Network space, as MTT's, DATM's and DD-Ranking's scripts expect it."""
    images = artifact.images("network") if view == "exact" else artifact.transform(artifact.images("uint8"))
    soft = soft_labels(artifact)
    tensors = {"images.pt": images, "labels.pt": artifact.labels if soft is None else soft}
    if artifact.step_size is not None:
        tensors["lr.pt"] = torch.tensor(artifact.step_size)
    return {name: _saved(tensor) for name, tensor in tensors.items()}


def _saved(tensor: Tensor) -> bytes:
    out = io.BytesIO()
    torch.save(tensor.detach().clone(), out)
    return out.getvalue()


# ---- README ------------------------------------------------------------------------------------------------------


def _readme(artifact: Artifact, format: str, view: str, size: int) -> str:
    card = escaped(artifact.card)
    source = card["data"].get("name", "a dataset")
    head = _about(artifact, size) if format == "parquet" else ""
    name = "distilled-8bit" if view == "png" else "distilled"
    scores = [f"- {percent(row)} under `{row['recipe']}` with {row['net']} ({row['view']} view)"
              for key, row in sorted(card["scores"].items()) if row.get("set", key.partition("/")[0]) == name]  # fmt: skip
    accuracies = "\n".join(scores) or "- not scored yet: `python -m jobs.evaluate`"
    loss = f"Clipped: {lost(artifact)}.\n\n" if view == "png" and lost(artifact) else ""
    what = {
        "png": "8-bit images, rounded and clipped", "exact": "exact values in network space",
        "files": "the image files that it stores, as they are",
    }[view]  # fmt: skip
    return (
        f"---\nlicense: other\ntask_categories:\n- image-classification\ntags:\n- dataset-distillation\n"
        f"pretty_name: {title(str(artifact.card['data'].get('name', 'a dataset')))} distilled, {len(artifact)} images\n"
        f"size_categories:\n- {size_category(len(artifact))}\n{head}---\n\n# {source}, distilled: {len(artifact)} images\n\n"
        f"A rendering of an artifact of rayd (`{card['sentence']}`, run {card['fingerprint'][:12]}): {what}.\n"
        f"It takes {size:,} bytes; the artifact itself stores {card['ledger']['floats']:,} numbers in "
        f"{card['ledger']['bytes']:,} bytes.\n\nTest accuracy of this view:\n\n{accuracies}\n\n{loss}"
        f"The licence and terms of {source} bind these images too.\n\n{_use(artifact, format)}"
    )


def _about(artifact: Artifact, size: int) -> str:
    """The features and sizes that Hugging Face reads from a card; JSON, which YAML contains."""
    names = {str(c): name for c, name in enumerate(artifact.classes)}
    features: list[dict[str, Any]] = [
        {"name": "image", "dtype": "image"},
        {"name": "label", "dtype": {"class_label": {"names": names}}},
    ]
    if artifact.has_soft_labels:
        features.append({"name": "soft_label", "list": "float16"})
    split = {"name": "train", "num_bytes": size, "num_examples": len(artifact)}
    info = {"features": features, "splits": [split], "download_size": size, "dataset_size": size}
    files = [{"split": "train", "path": "data/*.parquet"}]
    configs = [{"config_name": "default", "data_files": files}]
    facts = json.dumps(info, ensure_ascii=False).replace(
        "<", r"\u003c"
    )  # a name is no markup where a page shows the card
    return f"configs: {json.dumps(configs)}\ndataset_info: {facts}\n"


def _use(artifact: Artifact, format: str) -> str:
    """Ten lines that train one network by the `plain` recipe without us."""
    config, kind = artifact.card["config"], artifact.transform.kind
    with plugins.using(artifact.own):
        net = parse(NetConfig, config["net"], "card.config.net") if "net" in config else None
    small = artifact.card["codec"].get("side") not in (None, artifact.spec.shape[-2])
    ours = kind != "zca" and not small  # files of a smaller side are enlarged first
    if format != "parquet" or not ours or net is None or (net.name, net.norm) != ("convnet", "instance"):
        whitened = (
            "Networks see whitened images: `rayd.load(FOLDER).transform` whitens a test image, of pixels in [0, 1].\n"
        )
        return whitened if kind == "zca" else ""
    mean, std = ([round(float(v), 6) for v in t] for t in (artifact.transform.mean_C, artifact.transform.std_C))
    channels, side, _ = artifact.spec.shape
    deepest = (32 if side == 28 else side).bit_length() - 1
    depth, width = min(net.depth or max(min(2, deepest), deepest - 2), deepest), net.width or 128
    pads = [3 if side == 28 and i == 0 else 1 for i in range(depth)]
    ends = [channels] + [width] * depth
    layers = ", ".join(f"Conv2d({ends[i]}, {width}, 3, padding={pads[i]}), GroupNorm({width}, {width}), ReLU(), AvgPool2d(2)"
                       for i in range(depth))  # fmt: skip
    labels = "soft_label" if artifact.has_soft_labels else "label"
    flat = width * ((32 if side == 28 else side) >> depth) ** 2
    return f"""The `plain` recipe, once:

```python
import numpy, torch
from datasets import load_dataset
from torch.nn import AvgPool2d, Conv2d, Flatten, GroupNorm, Linear, ReLU, Sequential
data = load_dataset("parquet", data_files="data/*.parquet", split="train")
prepare = lambda images: (torch.stack([torch.tensor(numpy.array(one)).reshape({side}, {side}, {channels}).permute(2, 0, 1)
    for one in images]) / 255 - torch.tensor({mean})[:, None, None]) / torch.tensor({std})[:, None, None]
x, y = prepare(data["image"]), torch.tensor(data["{labels}"])
net = Sequential({layers}, Flatten(), Linear({flat}, {len(artifact.classes)}))
optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
for step in range(300):
    index = torch.randperm(len(x))[:256]
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(net(x[index]), y[index]).backward()
    optimiser.step()
```
"""
