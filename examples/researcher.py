"""Tensors in, three experts, NSD, a score beside controls, the card: no Ray, no configuration files. Two minutes.

python examples/researcher.py OUT
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits

import rayd


def main(out: str) -> None:
    digits = load_digits()
    images = rayd.Images.from_tensors(
        torch.tensor(digits.images / 16).float(), torch.tensor(digits.target), name="digits"
    )
    work = rayd.run(
        "demo method=nsd",
        data=images,
        out=out,
        expert={"experts": 3},
        method={"steps": 60},
        recipe={"seeds": 3},
    )
    for step in work:
        if step.number % 10 == 0:
            print(f"step {step.number}: {step.value:.3f}")
    artifact = work.result()
    rayd.controls(artifact)
    print(artifact)
    real = images.pixels_NCHW[:10], images.labels_N[:10]
    print("ten real images:", rayd.evaluate(*real, data=images, recipe="quick")["mean"])


if __name__ == "__main__":
    main(*sys.argv[1:])
