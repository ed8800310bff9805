"""Seconds and peak memory of one step of each objective; DM and NCFM against the same step written plainly.

Plainly: what the papers' own loops do, in fp32 and eagerly, one class after another, on the same images and network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayd.data.images import Images
from rayd.data.transform import Transform
from rayd.distill.classwise import Classwise
from rayd.distill.contract import Codec, Player
from rayd.distill.inputs import ResidentInputs
from rayd.distill.loop import Distillation, OptimiserConfig
from rayd.methods.dc import Gradient
from rayd.methods.dm import Distribution
from rayd.methods.mim4dd import Mim4dd
from rayd.methods.ncfm import Calibrate, Ncfm, PsiConfig
from rayd.nets.convnet import NetConfig
from rayd.seeds import generator
from rayd.studies.bench import Row, isolated

CLASSES, IPC = 10, 10
SIZES = {
    "default": {"width": 64, "dm_real": 128, "ncfm_real": 256, "frequencies": 1024},
    "full": {"width": 128, "dm_real": 256, "ncfm_real": 1024, "frequencies": 4096},
}
PARTS = ("dm", "dsa", "ncfm", "ncfm_psi", "dm_mim4dd")
MORE = ("ncfm_calibrate",)
"""With size=full."""


class Surroundings(ResidentInputs):
    """Random images and a pool of networks that nobody trained: neither changes the time of a step."""

    @property
    def experts(self) -> int:
        return 20

    @property
    def last_epoch(self) -> int:
        return 1

    def theta(self, expert: int, epoch: int) -> Tensor:
        return self.net.init(generator(self.seed, "expert", expert, epoch)).to(self.device)


class Pixels(Codec):
    """Plain images, `IPC` of each class."""

    def __init__(self, inputs: Surroundings) -> None:
        super().__init__()
        self.spec = inputs.spec
        self.axes = {"class": CLASSES, "image": IPC}
        index = torch.cat([inputs.members(c)[:IPC] for c in range(CLASSES)])
        self.pixels = nn.Parameter(inputs.real(index).clone())

    def __len__(self) -> int:
        return CLASSES * IPC

    def classes(self) -> Tensor:
        return torch.arange(CLASSES).repeat_interleave(IPC)

    def decode(self, index_N: Tensor) -> tuple[Tensor, Tensor]:
        index = index_N.to(self.pixels.device)
        return self.pixels[index], F.one_hot(index // IPC, CLASSES).float()

    def players(self) -> list[Player]:
        return [Player("pixels", (self.pixels,))]


def surroundings(width: int, precision: str, real: int) -> Surroundings:
    rng = generator(0, "bench")
    pixels = torch.randint(256, (CLASSES * real, 3, 32, 32), dtype=torch.uint8, generator=rng)
    labels = torch.arange(CLASSES).repeat_interleave(real)
    images = Images(pixels, labels, tuple(map(str, range(CLASSES))), "random", {})
    transform = Transform("normalise", torch.full((3,), 0.5), torch.full((3,), 0.25))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Surroundings(NetConfig(width=width).build(images.spec), transform, images, device, 0, precision=precision)


def timed(step: Callable[[], Any], inputs: Surroundings, repeats: int) -> dict[str, float]:
    """The first step (which compiles) and the fastest of the others; bytes of real images held."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        step()
        if inputs.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    result = {"seconds": min(times[1:]), "first": times[0], "resident": float(inputs.resident_bytes)}
    if inputs.device.type == "cuda":
        result["gpu_peak"] = float(torch.cuda.max_memory_allocated())
    return result


def ours(
    part: str, width: int, real: int, frequencies: int, precision: str = "bf16", repeats: int = 2
) -> dict[str, float]:
    inputs = surroundings(width, precision, 2 * real)
    codec = Pixels(inputs)
    objective: Classwise
    if part == "dsa":
        objective = Gradient.Config(batch_real=real, outer=10, inner=1).build(inputs)
    elif part.startswith("ncfm"):
        psi = PsiConfig() if part == "ncfm_psi" else None
        objective = Ncfm.Config(batch_real=real, frequencies=frequencies, psi=psi).build(inputs)
    else:
        objective = Distribution.Config(batch_real=real).build(inputs)
    added: dict[str, Any] = {"ncfm_calibrate": Calibrate.Config(), "dm_mim4dd": Mim4dd.Config()}
    terms = [added[part].build(inputs, codec)] if part in added else []
    rates = OptimiserConfig(name="sgd", lr=0.1)
    work = Distillation(codec, objective, terms, steps=repeats + 1, optimiser=rates, inputs=inputs)
    steps = work.run()
    return timed(lambda: next(steps), inputs, repeats)


def plain(part: str, width: int, real: int, frequencies: int, repeats: int = 1) -> dict[str, float]:
    """A step as the papers' loops write it: fp32, eager, a class at a time."""
    inputs = surroundings(width, "fp32", 2 * real)
    codec = Pixels(inputs)
    augment = Distribution.Config().augment.build() if part == "dm" else Ncfm.Config().augment.build()
    optimiser = torch.optim.SGD([codec.pixels], lr=0.1, momentum=0.5)
    rng = generator(0, "plain")

    def features(theta_P: Tensor, images_NCHW: Tensor) -> Tensor:
        return inputs.net.features(theta_P, images_NCHW)[-1]

    def phi(features_ND: Tensor, t_TD: Tensor) -> tuple[Tensor, Tensor]:
        z_NT = F.normalize(features_ND, dim=1) @ t_TD.T
        return z_NT.cos().mean(0), z_NT.sin().mean(0)

    def apart(theta_P: Tensor, real_NCHW: Tensor, syn_NCHW: Tensor) -> Tensor:
        with torch.no_grad():
            real_ND = features(theta_P, real_NCHW)
        syn_ND = features(theta_P, syn_NCHW)
        if part == "dm":
            return (real_ND.mean(0) - syn_ND.mean(0)).square().sum()
        t_TD = torch.randn(frequencies, real_ND.shape[1], generator=rng).to(inputs.device)
        (re_r, im_r), (re_s, im_s) = phi(real_ND, t_TD), phi(syn_ND, t_TD)
        size_r, size_s = (re_r**2 + im_r**2).sqrt(), (re_s**2 + im_s**2).sqrt()
        phase = 2 * (size_r * size_s - re_r * re_s - im_r * im_s)
        return 300 * (0.5 * (size_r - size_s).square() + 0.5 * phase.clamp(min=1e-12)).sqrt().mean()

    def step() -> None:
        theta_P = inputs.net.init(rng).to(inputs.device)
        optimiser.zero_grad()
        for c in range(CLASSES):
            members = inputs.members(c)
            real_NCHW = inputs.real(members[torch.randperm(len(members), generator=rng)[:real]])
            draw = augment.draw(rng, 1, inputs.spec.shape).to(inputs.device)
            syn_NCHW = augment(codec.decode(codec.of_class(c))[0], draw)
            apart(theta_P, augment(real_NCHW, draw), syn_NCHW).backward()
        optimiser.step()

    return timed(step, inputs, repeats)


def rows(size: str = "default") -> Iterator[Row]:
    s = SIZES[size]
    plainly: dict[str, dict[str, float]] = {}
    for part in PARTS + MORE if size == "full" else PARTS:
        family = "ncfm" if part.startswith("ncfm") else "dm"
        settings = {"width": s["width"], "real": s[f"{family}_real"], "frequencies": s["frequencies"]}
        where = f"{part} width={s['width']} real={settings['real']} ipc={IPC}"
        if part in ("dm", "ncfm"):
            plainly[part] = isolated("objectives", "plain", part=part, **settings)
            yield Row("objectives", f"{where} fp32, plainly", plainly[part]["seconds"], "s", 1.0, 1.0)
        for precision in ("fp32", "bf16") if part in plainly and size == "full" else ("bf16",):
            found = isolated("objectives", "ours", part=part, precision=precision, **settings)
            peak = "gpu_peak" if "gpu_peak" in found else "peak"
            base = plainly.get(part, {"seconds": math.nan, peak: math.nan})
            ratio, memory = base["seconds"] / found["seconds"], found[peak] / base[peak]
            known = part in plainly
            yield Row(
                "objectives",
                f"{where} {precision}",
                found["seconds"],
                "s",
                ratio if known else None,
                memory if known else None,
            )
            yield Row("objectives", f"{where} {precision}: peak memory", found[peak] / 2**20, "MB")
            yield Row("objectives", f"{where} {precision}: compilation", found["first"] - found["seconds"], "s")
        held = f"{part}: real images held as uint8 ({CLASSES} x {2 * settings['real']})"
        yield Row("objectives", held, found["resident"] / 2**20, "MB")
