"""Artifacts and buffers as this version writes them, frozen in a folder of their own:

    python tests/golden/make.py FOLDER [NAME...]

Each folder beside this file belongs to one version of the formats, and is never written again: tests/test_golden.py
reads all of them for ever. A new version of a format adds a folder (`python tests/golden/make.py tests/golden/2`); the
old ones stay, so that what users have on their disks still loads. A folder that exists is refused here.

`expected.json` says what reading must give. Stored numbers have the sha256 of their fp32 bytes, which no machine may
change. Decoded images may differ in their last bits between two CPUs: cut into eight parts, each part also has its mean and
its ramp (the mean of its numbers, each times its place from 0 to 1), to be met to 1e-5.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rayd
from jobs import distill, evaluate, experts
from jobs.compose import command
from rayd.experts.buffer import Buffer

SMALL = (
    "data=digits", "net=convnet_digits", "net.depth=1", "net.width=2", "budget.ipc=1.2", "method.compiled=false",
    "expert=quick", "expert.experts=2", "expert.epochs=3", "recipe.steps=20", "recipe.seeds=3",
)  # fmt: skip
MATCHED = (
    "method.objective.expert_epochs=1", "method.objective.last=2", "method.objective.inner_steps=2",
    "method.objective.batch=10", "method.steps=3",
)  # fmt: skip
BY_CLASS = ("method.steps=3", "method.objective.batch_real=16")

BUFFERS: dict[str, tuple[str, ...]] = {
    "buffer": (),
    "buffer-fp16": ("expert.storage=fp16", "expert.per_shard=2", "expert.epochs=2"),
}
ARTIFACTS: dict[str, tuple[str, ...]] = {
    "pixel": ("method=mtt", *MATCHED, "method.codec.labels=soft"),
    "pixel-int8": ("method=dm", *BY_CLASS, "transform=none", "method.codec.storage=int8"),
    "pixel-zca": ("method=dc", *BY_CLASS, "transform=zca", "method.codec.storage=bf16"),
    "pixel-teacher": (
        "method=dwa",
        "method.steps=3",
        "budget.ipc=1",
        "net.norm=batch",
        "recipe=sre2l",
        "recipe.epochs=null",
        "recipe.steps=20",
    ),
    "lodc": ("method=lodc", *MATCHED, "method.codec.storage=fp16"),
    "lss": ("method=lss", *MATCHED, "method.objective.grow_from=null"),
    "nsd": ("method=nsd", *MATCHED, "method.codec.labels=soft"),
    "haba": ("method=haba", *MATCHED, "method.codec.labels=soft"),
    "nsd-int4": ("method=nsd", *MATCHED, "method.codec.storage=int4", "method.codec.labels=soft"),
    "lss-int3": ("method=lss", *MATCHED, "method.objective.grow_from=null", "method.codec.storage=int3"),
    "lodc-int2": ("method=lodc", *MATCHED, "method.codec.storage=int2", "method.codec.scales=group"),
    "pixel-int6": (
        "method=dm",
        *BY_CLASS,
        "method.codec.storage=int6",
        "method.codec.scales=tensor",
        "method.codec.coder=zlib",
    ),
    "jpeg": ("method=jpeg", *MATCHED, "budget.ipc=null", "budget.bytes=4000"),
    "formation": ("method=ncfm", *BY_CLASS, "method.objective.frequencies=16", "method.objective.pool=2"),
}
"""Every codec, every storage type, every transform, soft labels, a teacher."""
POOLED = ("pixel-teacher", "formation")
"""These need networks of their own, which are not kept."""
PARTS = 8


def main(folder: Path, names: Sequence[str] = ()) -> None:
    """All artifacts, or those named; a version that changes only these needs no others."""
    if folder.exists():
        raise SystemExit(f"{folder}: is there already; what is frozen is not written again, name a new folder")
    wanted = {name: words for name, words in ARTIFACTS.items() if not names or name in names}
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in BUFFERS.items():
            said = [*SMALL, "method=mtt", *MATCHED, *words, f"buffer={folder / name}"]
            run("experts", experts.act, experts.KEYS, *said, at=Path(scratch) / name)
        for name, words in wanted.items():
            out = Path(scratch) / name
            said = [*SMALL, *words]
            if MATCHED[0] in words:
                said.append(f"buffer={folder / 'buffer'}")
            elif name in POOLED:
                run("experts", experts.act, experts.KEYS, *said, at=out)
            run("distill", distill.act, "", *said, at=out)
            controls = "controls=[random@floats]" if name == "pixel" else "controls=false"
            run("evaluate", evaluate.act, evaluate.KEYS, *said, controls, at=out)
            shutil.copytree(out / "artifact", folder / name)
            (folder / name / "timing.json").unlink()
    facts = {name: artifact_facts(folder / name) for name in wanted}
    facts |= {name: buffer_facts(folder / name) for name in BUFFERS}
    lines = (f"{json.dumps(name)}: {json.dumps(one, sort_keys=True)}" for name, one in facts.items())
    (folder / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def run(verb: str, act: Any, keys: str, *words: str, at: Path) -> None:
    if command(verb, None, act, keys, [*words, f"out={at}"]):
        raise SystemExit(f"{at.name}: {verb} did not finish")


def artifact_facts(folder: Path) -> dict[str, Any]:
    """What loading and decoding give, and what the card says."""
    artifact = rayd.load(folder)
    card = artifact.card
    keys = ("kind", "format", "sentence", "fingerprint", "codec", "shape", "classes", "images", "roles", "storage")
    return {
        "files": files(folder),
        "card": {key: card[key] for key in (*keys, "step_size", "seeds", "ledger", "reads")},
        "data": {key: card["data"][key] for key in ("name", "content")},
        "scores": {name: [row["mean"], row["n"]] for name, row in card["scores"].items()},
        "stored": {name: digest(one.tensor) for name, one in artifact.stored.items()},
        "images": {"sha256": digest(artifact.images("network")), "sums": sums(artifact.images("network"))},
        "pixels": {"sha256": digest(artifact.images()), "sums": sums(artifact.images())},
        "targets": {"sha256": digest(artifact.targets), "sums": sums(artifact.targets)},
        "labels": artifact.labels.tolist(),
    }


def buffer_facts(folder: Path) -> dict[str, Any]:
    """What a buffer says of its experts, and every row of them."""
    buffer = Buffer(str(folder))
    return {
        "files": files(folder),
        "fingerprint": dict(buffer.fingerprint),
        "numbers": buffer.numbers,
        "last_epoch": buffer.last_epoch,
        "rows": {
            str(expert): {str(epoch): digest(buffer.row(expert, epoch)) for epoch in buffer.epochs(expert)}
            for expert in range(buffer.experts)
        },
    }


def files(folder: Path) -> dict[str, list[Any]]:
    """Bytes and sha256 of every file."""
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    return {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in contents.items()}


def digest(tensor: Tensor) -> str:
    """sha256 of the fp32 bytes, little-endian."""
    return hashlib.sha256(tensor.detach().contiguous().numpy().astype("<f4").tobytes()).hexdigest()


def sums(tensor: Tensor) -> list[float]:
    """Mean and ramp of every part, one after the other."""
    parts = tensor.detach().flatten().double().tensor_split(PARTS)
    ramps = [torch.linspace(0, 1, len(part), dtype=torch.float64) for part in parts]
    pairs = [(part.mean(), (part * ramp).mean()) for part, ramp in zip(parts, ramps, strict=True)]
    return [round(float(number), 7) for pair in pairs for number in pair]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
