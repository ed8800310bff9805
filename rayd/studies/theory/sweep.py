"""The sweeps, the measurement of each task, and the verdict on the claim. Shapes: M pairs, d inputs, r directions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from rayd.distill.budget import Ledger, Stored
from rayd.errors import Refused, refuse
from rayd.methods.dc import parameter_gradient
from rayd.numbers import quantile
from rayd.schema import parse, positive, to_dict
from rayd.seeds import generator, seed_of
from rayd.store import Store
from rayd.studies.theory.match import Pairs, TheoryInputs, distilled
from rayd.studies.theory.task import Second, Student, Task

TEST = 4000
CLAIM = "r^2 d + L"
FREE = ("d", "r", "width", "seeds")
"""Fields that may change without making earlier points others."""


@dataclass(frozen=True, kw_only=True)
class TheoryConfig:
    """The sweeps: each of d, r and L alone around a base point."""

    d: tuple[int, ...] = (8, 16, 32, 64)
    """Inputs, swept at base_r and base_width."""
    r: tuple[int, ...] = (1, 2, 3, 4)
    """Directions that the teacher sees, swept at base_d and base_width."""
    width: tuple[int, ...] = (64, 256)
    """Neurons of the student, swept at base_d and base_r."""
    base_d: int = 32
    """Inputs where the sweeps cross."""
    base_r: int = 2
    """Directions where the sweeps cross."""
    base_width: int = 128
    """Neurons where the sweeps cross."""
    activation: Literal["softplus", "relu"] = "softplus"
    """With relu, a pair's gradient is a step in w: pairs spread outside of the subspace to smooth it."""
    examples: int = 48
    """Training examples of the teacher, in units of d^2 / r: below about 30 their own noise hides the subspace."""
    pairs: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
    """Numbers of distilled pairs that are tried, ascending, until one reproduces the generalisation."""
    steps: int = 600
    """Of one distillation."""
    pool: int = 16
    """Students whose gradients are matched, in turn."""
    lr: float = 0.12
    """For a vector: an entry gets 1 / sqrt(d) of it."""
    share: float = 0.98
    """A memory reproduces generalisation if it explains this share of the variance that training on all data explains."""
    seeds: int = 3
    """Tasks at each point."""

    def __post_init__(self) -> None:
        for name in ("examples", "steps", "pool", "lr", "seeds"):
            positive(f"theory.{name}", getattr(self, name))
        if not 0 < self.share < 1:
            raise refuse("theory.share", self.share, "between 0 and 1")
        if not self.pairs or list(self.pairs) != sorted(set(self.pairs)) or self.pairs[0] < 1:
            raise refuse("theory.pairs", list(self.pairs), "ascending whole numbers from 1")
        for d, r, width in self.points():
            Task.check(d, r, width)

    def points(self) -> list[tuple[int, int, int]]:
        """(d, r, L) of every task, each once."""
        base = (self.base_d, self.base_r, self.base_width)
        sweep = [(d, base[1], base[2]) for d in self.d] + [(base[0], r, base[2]) for r in self.r]
        return list(dict.fromkeys([base, *sweep, *((base[0], base[1], width) for width in self.width)]))


def energy(x_Md: Tensor, basis_dr: Tensor) -> float:
    """Share of the vectors' energy that lies in the teacher's subspace; r / d by chance."""
    return float((x_Md @ basis_dr).square().sum() / x_Md.square().sum())


def angle(x_Md: Tensor, basis_dr: Tensor) -> float:
    """Sine of the largest principal angle between the span of the vectors (its first r directions) and the subspace."""
    r = basis_dr.shape[1]
    if len(x_Md) < r:
        return 1.0
    span_dr = torch.linalg.svd(x_Md.T.double(), full_matrices=False)[0][:, :r]
    cosine = torch.linalg.svdvals(span_dr.T @ basis_dr.double())[-1].clamp(max=1)
    return math.sqrt(max(0.0, 1 - float(cosine) ** 2))


@dataclass(frozen=True)
class TheoryPoint:
    """One task and seed: the smallest memory that reproduces generalisation, and what it encodes."""

    d: int
    r: int
    width: int
    seed: int
    pairs: int | None
    """None: none of those tried."""
    floats: int | None
    energy: float
    angle: float
    loss: float
    error: float
    error_full: float
    error_random: float
    """Of a random subset of real examples of as many floats."""
    tried: tuple[tuple[int, float], ...]
    """Pairs and test error of every memory tried."""


def measure(config: TheoryConfig, d: int, r: int, width: int, seed: int) -> TheoryPoint:
    """Ascend the numbers of pairs until one reproduces what training on everything reaches."""
    Task.check(d, r, width)
    task, student = Task.draw(d, r, seed_of(seed, "theory", d, r)), Student(d, width, config.activation)
    x_Nd, y_N = task.examples(max(2000, config.examples * d * d // r), "train")
    test_Nd, truth_N = task.examples(TEST, "test", noise=0.0)
    inputs = TheoryInputs.build(task, student, x_Nd, y_N, config.pool)
    start_P = student.init(generator(task.seed, "fresh"))

    def reached(gradient_P: Tensor, x: Tensor, y: Tensor, probes: bool) -> float:
        """Test error after the step; with `probes` the second layer passes through its L stored labels."""
        second = Second.draw(student.stepped(gradient_P), task.seed, config.activation)
        a_L = second.fit(x, y)
        if probes:
            probe_Ld = torch.randn(width, d, generator=generator(task.seed, "probes"))
            a_L = second.fit(probe_Ld, (second.features(probe_Ld) @ a_L).float(), 1e-6)
        return second.error(a_L, test_Nd, truth_N)

    full = reached(parameter_gradient(student.loss, start_P, x_Nd, y_N), x_Nd, y_N, False)
    tried: list[tuple[int, float]] = []
    codec, loss, enough = Pairs(1, d, seed), math.inf, None
    for pairs in config.pairs:
        codec, loss = distilled(inputs, pairs, config.steps, config.lr)
        x_Md, y_M = (p.detach() for p in codec.decode(torch.arange(pairs)))
        tried.append((pairs, reached(parameter_gradient(student.loss, start_P, x_Md, y_M), x_Nd, y_N, True)))
        if 1 - tried[-1][1] >= config.share * (1 - full):
            enough = pairs
            break
    labels = Stored(torch.zeros(width), "labels")
    floats = Ledger.of({**codec.stored(), "probes": labels}).floats
    few = max(2, floats // (d + 1))
    random = reached(parameter_gradient(student.loss, start_P, x_Nd[:few], y_N[:few]), x_Nd[:few], y_N[:few], False)
    x_Md = codec.x_Md.detach() * codec.y_M.detach().abs().sqrt()[:, None]
    return TheoryPoint(d, r, width, seed, enough, floats if enough else None, energy(x_Md, task.basis_dr),
                 angle(x_Md, task.basis_dr), loss, tried[-1][1], full, random, tuple(tried))  # fmt: skip


def sweep(config: TheoryConfig, seed: int, done: Sequence[TheoryPoint] = ()) -> Iterator[TheoryPoint]:
    """Every task under every seed, but for those in `done`."""
    known = {(p.d, p.r, p.width, p.seed) for p in done}
    for d, r, width in config.points():
        for s in range(config.seeds):
            if (d, r, width, s + seed) not in known:
                yield measure(config, d, r, width, s + seed)


class Points:
    """The measured points, a file each under `theory/`: an interrupted sweep continues."""

    def __init__(self, out: str, config: TheoryConfig, seed: int) -> None:
        self.store = Store(out).sub("theory")
        plan = {name: value for name, value in to_dict(config).items() if name not in FREE} | {"seed": seed}
        keys = self.store.claim("plan.json", plan)
        if keys:
            raise Refused(f"out={out}: holds a sweep with another {', '.join(keys)}; give another out")
        self.rows = [parse(TheoryPoint, self.store.read_json(name)) for name in self.store.list("points/")]

    def add(self, point: TheoryPoint) -> None:
        self.rows.append(point)
        name = f"points/d{point.d:04d}-r{point.r:02d}-L{point.width:05d}-{point.seed}.json"
        self.store.write_json(name, asdict(point))


# ---- the verdict --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slope:
    """d log y / d log x by least squares, with its 95 % interval."""

    slope: float
    low: float
    high: float
    n: int


def slope(points: Sequence[tuple[float, float]]) -> Slope | None:
    """None for fewer than three points or a single x."""
    x, y = ([math.log(p[i]) for p in points] for i in (0, 1))
    n = len(points)
    if n < 3 or max(x) - min(x) < 1e-9:
        return None
    mx, my = fmean(x), fmean(y)
    sxx = math.fsum((v - mx) ** 2 for v in x)
    b = math.fsum((v - mx) * (w - my) for v, w in zip(x, y, strict=True)) / sxx
    rest = math.fsum((w - my - b * (v - mx)) ** 2 for v, w in zip(x, y, strict=True))
    half = quantile(n - 2) * math.sqrt(rest / (n - 2) / sxx)
    return Slope(b, b - half, b + half, n)


def verdict(config: TheoryConfig, points: Sequence[TheoryPoint]) -> dict[str, Any]:
    """The exponents of the first layer's floats, M (d + 1), in d and in r; the tasks that no number of pairs reproduced."""
    base = {"d": config.base_d, "r": config.base_r, "width": config.base_width}

    def fitted(axis: str, floats: bool) -> dict[str, Any] | None:
        """Over the sweep along one axis."""
        rest = {name: value for name, value in base.items() if name != axis}
        swept = [p for p in points if p.pairs and all(getattr(p, name) == value for name, value in rest.items())]
        fit = slope([(float(getattr(p, axis)), float((p.pairs or 0) * (p.d + 1 if floats else 1))) for p in swept])
        return asdict(fit) if fit else None

    def mean(value: str, task: tuple[int, int, int]) -> float | None:
        values = [getattr(p, value) for p in points if (p.d, p.r, p.width) == task]
        return fmean(values) if values else None

    means = {value: {f"d={d} r={r} L={w}": mean(value, (d, r, w)) for d, r, w in config.points()}
             for value in ("energy", "angle")}  # fmt: skip
    return {
        "claim": CLAIM,
        "floats_in_d": fitted("d", True),
        "pairs_in_d": fitted("d", False),
        "floats_in_r": fitted("r", True),
        "pairs_in_width": fitted("width", False),
        **means,
        "not_reached": [f"d={p.d} r={p.r} L={p.width} seed {p.seed}" for p in points if p.pairs is None],
        "points": [asdict(p) for p in points],
    }


@dataclass(frozen=True)
class TheoryKeys:
    """The keys that jobs.theory takes beyond those of a run."""

    theory: TheoryConfig = field(default_factory=TheoryConfig)
