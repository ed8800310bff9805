"""A folder with one of everything that code of one's own may add: written for a test, used as `methods=FOLDER`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

PARTS = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rayd.distill.classwise import Classwise
from rayd.distill.contract import Match, Term
from rayd.methods.pixel import Pixel

from . import layers


class Mirrored(Pixel):
    """Left halves; the right ones are their mirror images."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Pixel.Config):
        def shapes(self, spec):
            channels, height, width = spec.shape
            return {"pixels": ((self.images or 0, channels, height, width // 2), "pixels")}

        def build(self, spec, rng):
            return Mirrored(self, spec, rng)

    def __init__(self, config, spec, rng):
        super().__init__(config, spec, rng)
        self.pixels = torch.nn.Parameter(self.pixels.detach()[..., : spec.shape[-1] // 2].contiguous())

    def images(self, index_N):
        half = super().images(index_N)
        return torch.cat([half, half.flip(-1)], -1)

    def begin(self, take, rng):
        for c in range(self.spec.classes):
            images = take(c, self.units_of(c))
            self.pixels[c :: self.spec.classes] = images[..., : self.spec.shape[-1] // 2].to(self.pixels)


class Gap(Classwise):
    """Absolute instead of squared differences of means."""

    needs: ClassVar[frozenset[str]] = frozenset({"nets", "real"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Classwise.Config):
        def build(self, inputs):
            return Gap(self, inputs)

    def forward(self, codec, item, data):
        theta, syn = data.source.theta_P, self.synthetic(codec, item)
        real = torch.stack([self.embed_real(theta, part).mean(0) for part in data.real_GnCHW])
        seen = syn.by_class(lambda features: features.mean(1), self.embed(theta, syn.views_NCHW))
        return Match((real - seen).abs().sum(), {}, self.scene(data, theta, syn))


class Dark(Term):
    asks: ClassVar[frozenset[str]] = frozenset({"images"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        weight: float = 0.1

        def build(self, inputs, codec):
            return Dark(self)

    def __init__(self, config):
        super().__init__()
        self.weigh(config.weight)

    def value(self, codec, item, match):
        return Match(match.scene["images"].square().mean())


CODECS = {"mirrored": Mirrored}
OBJECTIVES = {"gap": Gap}
TERMS = {"dark": Dark}
NETS = {"flat": layers.Flat}
'''
LAYERS = '''
import torch

from rayd.nets.layers import Net, NetLayout


class Flat(Net):
    """One hidden layer."""

    def __init__(self, config, spec):
        plan = NetLayout(config.norm)
        plan.linear("hidden", spec.floats, config.width or 16)
        plan.linear("head", config.width or 16, spec.classes)
        super().__init__(config, spec, plan)

    def blocks(self, scope, x):
        return [torch.relu(scope.linear("hidden", x.flatten(1)))]
'''
DATA = '''
import numpy as np
import torch

from rayd.data.sources.listing import Contents, Listing, Source


def npz(files, config):
    """images.npz with `images` and `labels`."""
    if "images.npz" not in files.names():
        return None

    def contents():
        with files.open("images.npz") as file:
            arrays = np.load(file)
            images, labels = arrays["images"], arrays["labels"].tolist()
        names = [f"image {i}" for i in range(len(labels))]
        parts = {"train": slice(0, 90), "test": slice(90, None)}
        listings = {
            part: Listing(names[rows], labels[rows], lambda a, b, rows=rows: iter(images[rows][a:b]))
            for part, rows in parts.items()
        }
        return Contents(("left", "right", "middle"), listings)

    return Source([files.stamp("images.npz")], contents, 1, files.where)


class Fade:
    columns = 1

    def draw(self, rng, n, height, width):
        return torch.rand(n, 1, generator=rng)

    def apply(self, images, values):
        return images * (1 - 0.2 * values[:, :, None, None])


def first(features, n):
    """The first n images of a class."""
    return torch.arange(n)


FORMATS = {"npz": npz}
AUGMENTATIONS = {"fade": Fade()}
CONTROLS = {"first": first}
'''
METHOD = """codec: {name: mirrored}
objective: {name: gap, batch_real: 16, augment: {ops: [flip, fade], share: batch}}
terms: [{name: dark}]
optimiser: {lr: 0.05}
"""
RECIPE = "{name: brief, steps: 8, batch: 32, lr: 0.05, seeds: 2, augment: {ops: [fade]}}\n"


def write(folder: Path) -> Path:
    """The code, its YAML and its tests, under `folder`; images.npz beside them in data/."""
    texts = {
        "parts.py": PARTS, "layers.py": LAYERS, "sources.py": DATA, "test_parts.py": "raise RuntimeError('never loaded')\n",
        "method/mine.yaml": METHOD, "recipe/brief.yaml": RECIPE, "net/flat.yaml": "name: flat\n",
        "data/npz.yaml": "name: npz\npath: null\n",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = rng.integers(0, 60, (120, 1, 8, 8), np.uint8)
    for i, c in enumerate(labels):
        images[i, 0, :, 3 * c : 3 * c + 2] += 180
    np.savez(folder / "data" / "images.npz", images=images, labels=labels)
    return folder
