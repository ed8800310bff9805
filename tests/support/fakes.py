"""A plain-pixel codec for tests that must not depend on the real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayd.data.images import Images, Spec
from rayd.distill.budget import Stored


class Pixels(nn.Module):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        ipc: int = 1

        def build(self, spec: Spec, rng: torch.Generator) -> Pixels:
            return Pixels(self, spec, rng)

    def __init__(self, config: Config, spec: Spec, rng: torch.Generator) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        self.axes = {"class": spec.classes, "image": config.ipc}
        self.images = nn.Parameter(torch.randn(spec.classes * config.ipc, *spec.shape, generator=rng))

    def __len__(self) -> int:
        return len(self.images)

    def classes(self) -> Tensor:
        return torch.arange(self.spec.classes).repeat_interleave(self.config.ipc)

    def of_class(self, c: int) -> Tensor:
        return (self.classes() == c).nonzero().flatten()

    def decode(self, index_N: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[index_N], torch.nn.functional.one_hot(self.classes()[index_N], self.spec.classes).float()

    def encode(self, take: Callable[[int, int], Tensor], rng: torch.Generator) -> None:
        with torch.no_grad():
            self.images.copy_(torch.cat([take(c, self.config.ipc) for c in range(self.spec.classes)]))

    def stored(self) -> dict[str, Stored]:
        return {"images": Stored(self.images, "pixels")}


def tiny(n: int = 60, size: int = 8, classes: int = 3, channels: int = 1, seed: int = 0) -> Images:
    """Images whose class is where they are bright."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    pixels = torch.randint(0, 90, (n, channels, size, size), generator=rng)
    for c in range(classes):
        pixels[labels == c, :, c * size // classes : (c + 1) * size // classes] += 120
    names = tuple(f"class {c}" for c in range(classes))
    return Images(pixels.to(torch.uint8), labels, names, "tiny", {"content": f"tiny-{n}-{size}-{seed}", "name": "tiny"})


DATA = {"name": "generated", "size": 8, "channels": 1, "classes": 3, "count": 90, "val": 0.1}


def a_run(method: object = None, recipe: dict[str, object] | None = None, **more: object):  # type: ignore[no-untyped-def]
    """A run on generated images that takes seconds at most."""
    from rayd.config import Run
    from rayd.schema import parse

    method = method or {"codec": {"name": "pixel"}, "objective": {"name": "distribution"}}
    short = {"name": "short", "steps": 40, "batch": 32, "lr": 0.05, "seeds": 3, **(recipe or {})}
    plain = {
        "data": DATA,
        "net": {"name": "convnet", "width": 8, "depth": 1},
        "expert": {},
        "recipe": short,
        "method": method,
    }
    return parse(Run, {**plain, **more})


def an_artifact(folder, run, images=None, step_size: float | None = 0.02):  # type: ignore[no-untyped-def]
    """An artifact of that run; its images are the real start, or `images` (of the start) in network space."""
    from rayd.artifact import write
    from rayd.run.assemble import surroundings
    from rayd.schema import to_dict
    from rayd.seeds import generator

    splits, transform, _ = surroundings(run)
    spec = splits.train.spec
    config = run.method.codec.fit(run.budget, spec)
    codec = config.build(spec, generator(run.seed, "codec"))

    def take(c: int, n: int) -> Tensor:
        return transform(splits.train.pixels_NCHW[splits.train.of_class(c).repeat(n)[:n]])

    codec.encode(take, generator(run.seed, "encode"))
    if images is not None:
        with torch.no_grad():
            codec.pixels.copy_(images(codec.pixels.clone()))
    stored = codec.stored()
    if step_size is not None:
        stored["step_size"] = Stored(torch.tensor([step_size]), "step")
    word = run.method.part_names[0]
    about = write.Provenance(
        codec={"name": word, **to_dict(config)},
        spec=spec,
        classes=splits.train.classes,
        sentence=run.method.sentence,
        config=to_dict(run),
        fingerprint=run.fingerprint(),
        data=splits.train.manifest,
        seeds={"run": run.seed},
    )
    write.save(folder, about, codec, stored, transform, {"distill_s": 1.0})
    return folder
