"""Seconds and peak memory of one step of each objective; DM and NCFM against the papers' own loops.

Those run torch.nn modules in fp32 and eagerly, one class after another, on the same images and network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayd.data.images import Images
from rayd.data.transform import Transform
from rayd.distill.classwise import Classwise
from rayd.distill.contract import Codec, Player
from rayd.distill.inputs import RunInputs
from rayd.distill.loop import Distillation, OptimiserConfig
from rayd.methods.dc import Gradient
from rayd.methods.dm import Distribution
from rayd.methods.mim4dd import Mim4dd
from rayd.methods.ncfm import Calibrate, Ncfm, PsiConfig
from rayd.nets.convnet import NetConfig
from rayd.seeds import generator
from rayd.studies.bench import BenchRow, Timing, compared, interleaved, isolated, peak_of, timings
from rayd.studies.bench.field import CLASSES, convnet, started

IPC = 10
SIZES = {
    "default": {"width": 32, "dm_real": 64, "ncfm_real": 128, "frequencies": 1024},
    "full": {"width": 128, "dm_real": 256, "ncfm_real": 1024, "frequencies": 4096},
}
PARTS = ("dm", "dsa", "ncfm", "ncfm_psi", "dm_mim4dd")
MORE = ("ncfm_calibrate",)
"""With size=full."""


class Surroundings(RunInputs):
    """Random images and a pool of untrained networks: neither changes the time of a step."""

    per_class: int
    """Real images of a class in a step."""

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


def surroundings(width: int, precision: str, per_class: int) -> Surroundings:
    """Twice as many images of each class as a step draws."""
    rng = generator(0, "bench")
    pixels = torch.randint(256, (CLASSES * 2 * per_class, 3, 32, 32), dtype=torch.uint8, generator=rng)
    labels = torch.arange(CLASSES).repeat_interleave(2 * per_class)
    images = Images(pixels, labels, tuple(map(str, range(CLASSES))), "random", {})
    transform = Transform("normalise", torch.full((3,), 0.5), torch.full((3,), 0.25))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = NetConfig(width=width).build(images.spec)
    inputs = Surroundings(net, transform, images, device, 0, precision=precision)
    inputs.per_class = per_class
    return inputs


def ours(part: str, precision: str, inputs: Surroundings, frequencies: int) -> Callable[[], None]:
    """A step of the engine."""
    real = inputs.per_class
    codec = Pixels(inputs)
    objective: Classwise
    if part == "dsa":
        objective = Gradient.Config(batch_real=real, outer=10, inner=1).build(inputs)
    elif part.startswith("ncfm"):
        psi = PsiConfig() if part == "ncfm_psi" else None
        objective = Ncfm.Config(batch_real=real, frequencies=frequencies, psi=psi).build(inputs)
    else:
        objective = Distribution.Config(batch_real=real).build(inputs)
    terms: dict[str, Any] = {"ncfm_calibrate": Calibrate.Config(), "dm_mim4dd": Mim4dd.Config()}
    added = [terms[part].build(inputs, codec)] if part in terms else []
    rates = OptimiserConfig(name="sgd", lr=0.1)
    steps = Distillation(codec, objective, added, steps=10**6, optimiser=rates, inputs=inputs).run()

    def step() -> None:
        next(steps)

    return step


def field(part: str, width: int, inputs: Surroundings, frequencies: int) -> Callable[[], None]:
    """A step as the papers' loops write it: torch.nn modules, fp32, eager, a class at a time."""
    codec = Pixels(inputs)
    augment = (Distribution if part == "dm" else Ncfm).Config().augment.build()
    optimiser = torch.optim.SGD([codec.pixels], lr=0.1, momentum=0.5)
    rng = generator(0, "plain")

    def phi(features_ND: Tensor, t_TD: Tensor) -> tuple[Tensor, Tensor]:
        z_NT = F.normalize(features_ND, dim=1) @ t_TD.T
        return z_NT.cos().mean(0), z_NT.sin().mean(0)

    def discrepancy(features: Callable[[Tensor], Tensor], real_NCHW: Tensor, syn_NCHW: Tensor) -> Tensor:
        with torch.no_grad():
            real_ND = features(real_NCHW)
        syn_ND = features(syn_NCHW)
        if part == "dm":
            return (real_ND.mean(0) - syn_ND.mean(0)).square().sum()
        t_TD = torch.randn(frequencies, real_ND.shape[1], generator=rng).to(inputs.device)
        (re_r, im_r), (re_s, im_s) = phi(real_ND, t_TD), phi(syn_ND, t_TD)
        size_r, size_s = (re_r**2 + im_r**2).sqrt(), (re_s**2 + im_s**2).sqrt()
        phase = 2 * (size_r * size_s - re_r * re_s - im_r * im_s)
        apart = 0.5 * (size_r - size_s).square() + 0.5 * phase.clamp(min=1e-12)
        return 300 * apart.sqrt().mean()

    def step() -> None:
        features = started(convnet(width), inputs.net.init(rng).to(inputs.device))[:-1].requires_grad_(False)
        optimiser.zero_grad()
        for c in range(CLASSES):
            members = inputs.members(c)
            real_NCHW = inputs.real(members[torch.randperm(len(members), generator=rng)[: inputs.per_class]])
            draw = augment.draw(rng, 1, inputs.spec.shape)
            syn_NCHW = augment(codec.decode(codec.of_class(c))[0], draw)
            discrepancy(features, augment(real_NCHW, draw), syn_NCHW).backward()
        optimiser.step()

    return step


def step_of(way: str, part: str, width: int, real: int, frequencies: int) -> tuple[Callable[[], None], float]:
    """A step by one way (`field`, or a precision of ours), and the bytes of real images that it keeps resident."""
    inputs = surroundings(width, "fp32" if way == "field" else way, real)
    step = field(part, width, inputs, frequencies) if way == "field" else ours(part, way, inputs, frequencies)
    return step, float(inputs.images.pixels_NCHW.numel())


def ways(names: list[str], **settings: Any) -> dict[str, Timing]:
    return interleaved({name: step_of(name, **settings)[0] for name in names})


def peak(name: str, **settings: Any) -> dict[str, float]:
    """Two steps, for their memory."""
    step, resident = step_of(name, **settings)
    step(), step()
    return {"resident": resident}


def rows(size: str = "default") -> Iterator[BenchRow]:
    s = SIZES[size]
    for part in PARTS + MORE if size == "full" else PARTS:
        real = s["ncfm_real" if part.startswith("ncfm") else "dm_real"]
        settings: dict[str, Any] = {"part": part, "width": s["width"], "real": real, "frequencies": s["frequencies"]}
        where = f"{part} width={s['width']} real={real} ipc={IPC}"
        names = ["bf16"]
        if part in ("dm", "ncfm"):
            names = ["field", "fp32", "bf16"] if size == "full" else ["field", "bf16"]
        by_way = timings("objectives", "ways", names=names, **settings)
        memory = {name: isolated("objectives", "peak", name=name, **settings) for name in names}
        for name, timing in by_way.items():
            words = f"{where} {'torch.nn fp32' if name == 'field' else name}"
            share = peak_of(memory[name]) / peak_of(memory["field"]) if "field" in memory else None
            yield compared("objectives", words, timing, by_way.get("field"), memory_ratio=share)
            yield BenchRow(
                bench="objectives", case=f"{words}: peak memory", value=peak_of(memory[name]) / 2**20, unit="MB"
            )
            if name != "field":
                yield BenchRow(bench="objectives", case=f"{words}: compilation", value=timing.compilation, unit="s")
        case = f"{part}: real images resident as uint8 ({CLASSES} x {2 * real})"
        yield BenchRow(bench="objectives", case=case, value=memory["bf16"]["resident"] / 2**20, unit="MB")
