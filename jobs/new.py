"""Write a method to begin with: an objective of one's own, its YAML and its test, which passes as written.

usage: python -m jobs.new method NAME [to=FOLDER]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs import program
from jobs.compose import exit_code, options

FOLDER = "methods"
METHOD = '''"""NAME: what is matched, in one line. Paper, arXiv number.

    L = sum_c || mean_i f(A(x_i^c)) - mean_j f(A(s_j^c)) ||^2 + || std_i f(A(x_i^c)) - std_j f(A(s_j^c)) ||^2

x are real images of class c, s synthetic ones, A one augmentation for both, f a fresh network every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rayd.distill.classwise import Batch, Classwise
from rayd.distill.contract import Codec, Inputs, Item, Match


def moments(features_GmD: Tensor) -> Tensor:
    """Mean and standard deviation over the images of each class: [G, 2D]."""
    return torch.cat([features_GmD.mean(1), features_GmD.std(1, correction=0)], 1)


class CLASS(Classwise):
    needs: ClassVar[frozenset[str]] = frozenset({"nets", "real"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Classwise.Config):
        spread: float = 1.0
        """Weight of the standard deviations beside the means."""

        def build(self, inputs: Inputs) -> CLASS:
            return CLASS(self, inputs)

    def __init__(self, config: Config, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.config = config

    def forward(self, codec: Codec, item: Item, data: Batch) -> Match:
        theta_P, syn = data.source.theta_P, self.synthetic(codec, item)
        real_GD = torch.cat([moments(self.embed_real(theta_P, part)[None]) for part in data.real_GnCHW])
        syn_GD = syn.by_class(moments, self.embed(theta_P, syn.views_NCHW))
        means, spreads = (real_GD - syn_GD).square().chunk(2, 1)
        value = means.sum() + self.config.spread * spreads.sum()
        return Match(value, {"spreads": spreads.detach().sum()}, self.scene(data, theta_P, syn))


OBJECTIVES = {"NAME": CLASS}
'''
YAML = """# NAME: codec + objective + terms, and how they are optimised. Run it with method=NAME methods=FOLDER.
codec: {name: pixel}
objective: {name: NAME, batch_real: 64}
optimiser: {lr: 0.05}
steps: 1000
"""
TEST = '''"""NAME: its mathematics, and a whole run on generated images."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import rayd
from rayd.choices import plugins

HERE = Path(__file__).parent
IMAGES = {"name": "generated", "size": 8, "channels": 1, "classes": 3, "count": 90}
SHORT = {"steps": 40, "objective": {"batch_real": 16}}


def test_moments_are_those_of_each_class() -> None:
    method = plugins.load(str(HERE)).objectives["NAME"]
    moments = sys.modules[method.__module__].moments
    two = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])
    assert torch.equal(moments(two), torch.tensor([[2.0, 0.0, 1.0, 0.0]]))


def test_a_set_is_distilled_and_scored(tmp_path: Path) -> None:
    work = rayd.run("smoke method=NAME", out=tmp_path, methods=HERE, data=IMAGES, method=SHORT)
    values = [step.value for step in work]
    assert len(values) == 40 and sum(values[-10:]) < sum(values[:10])
    artifact = work.result()
    assert artifact.card["sentence"] == "pixel + NAME"
    table = rayd.controls(artifact, names=["random@floats"], data=IMAGES, methods=HERE)
    assert table["distilled"]["n"] == 2
    assert all(finding.holds for finding in rayd.verify(artifact, data=IMAGES, methods=HERE, scores=False))
    again = rayd.run("smoke method=NAME", out=tmp_path, methods=HERE, data=IMAGES, method=SHORT)
    assert list(again) == [], "the same call again has nothing to do"
'''


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or "--help" in words or "-h" in words:
        print(f"{(__doc__ or '').split('usage:')[0].strip()}\n\nusage: {program('new')} method NAME [to=FOLDER]")
        return 0
    return exit_code(lambda: written(words))


def written(words: Sequence[str]) -> int:
    """Write the three files; none of them may be there."""
    from rayd.errors import refuse
    from rayd.methods import OBJECTIVES

    named, to = [word for word in words if "=" not in word], FOLDER
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key != "to":
            raise refuse("new", word, "method NAME, and to=FOLDER")
        to = value if equals else to
    if len(named) != 2 or named[0] != "method":
        raise refuse("new", " ".join(named), "method NAME", f"{program('new')} method mine")
    name, folder = named[1], Path(to).expanduser()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name.startswith("test_"):
        raise refuse("new method", name, "small letters, digits and _, a letter first")
    if name in OBJECTIVES or name in options("method"):
        raise refuse("new method", name, "a name that is not taken", "choose another name")
    texts = {f"{name}.py": METHOD, f"method/{name}.yaml": YAML, f"test_{name}.py": TEST}
    taken = [file for file in texts if (folder / file).exists()]
    if taken:
        raise refuse("new method", name, f"a name without {folder / taken[0]}", "choose another name or folder")
    for file, text in texts.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        cls = "".join(part.capitalize() for part in name.split("_"))
        path.write_text(text.replace("NAME", name).replace("CLASS", cls).replace("FOLDER", to))
        print(f"rayd: {path}")
    print(f"next: python -m pytest {folder / f'test_{name}.py'}")
    print(f"      {program('distill')} methods={folder} method={name} preset=demo out=runs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
