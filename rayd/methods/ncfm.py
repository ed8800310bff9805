"""Neural characteristic function matching. Wang et al., CVPR 2025, arXiv:2502.20653.

    min_S max_psi  sum_c mean_t sqrt(alpha * (|phi_r| - |phi_s|)^2 + beta * 2 (|phi_r||phi_s| - Re phi_r conj(phi_s)))
    phi(t) = mean_i exp(i t.f(x_i)),   t = s psi(eps) * z,  eps, z ~ N(0, I):  a learned scale mixture of normals

f is the flattened, L2-normalised last block of a network between an expert's initialisation and its end (a pool in the
expert buffer). At alpha = beta the loss is sqrt(alpha) * mean_t |phi_r - phi_s|, which is what we then compute.

What we changed: psi is trained, after the paper and not its release (whose psi gets a gradient of exactly zero, draws
four distinct frequencies and no Gaussian factor); its scales reach s = 3, without which a tanh keeps them below those of
N(0, I) and the maximum below what it is to exceed; real images are drawn at random from the whole class (the release
sees its first 1,024 for ever); all classes take one step together, so the result does not depend on the number of
workers, where the release takes one for each class of a GPU and so moves further at the same rate (raise the rate; its
plateau is `optimiser.decay`); experts are trained without CutMix; one set of frequencies serves all classes of a step.
The release's calibration is the term `calibrate`.

Shapes: T frequencies, M mixture components, G classes, m images of each, D features.

NCFM's calibration: a trained network must recognise the synthetic images (Wang et al., CVPR 2025, release only).

    + weight * sum_c mean_{j in c} CE(f_trained(A(s_j)), y_j)

The trained network is the end of the expert whose pool network the step matches under. The release takes it in a second
optimiser step of its own; here both share one, so `weight` is against the objective's `scale`.

N synthetic images of an item, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayd.data.augment import AugmentConfig
from rayd.distill.classwise import Batch, Classwise, Source, refuse_untrained_batch_norm
from rayd.distill.contract import Codec, Inputs, Item, Match, OptimiserConfig, Player, Term
from rayd.distill.unroll import DTYPES
from rayd.errors import refuse
from rayd.machine import compiled
from rayd.seeds import generator

TINY = 1e-12
"""Under every root, so that its slope stays finite at equal sets (the release clamps the phase at the same value)."""


def characteristic(features_GmD: Tensor, t_TD: Tensor) -> Tensor:
    """Empirical characteristic function of each class at each frequency: [G, 2, T], real and imaginary part."""
    z_GmT = (features_GmD @ t_TD.mT).float()
    return torch.stack([z_GmT.cos().mean(1), z_GmT.sin().mean(1)], 1)


def discrepancy(real_G2T: Tensor, syn_G2T: Tensor, alpha: float, beta: float) -> Tensor:
    """[G]: mean over frequencies of the root of alpha * amplitude + beta * phase."""
    if alpha == beta:
        return math.sqrt(alpha) * ((real_G2T - syn_G2T).square().sum(1) + TINY).sqrt().mean(1)
    size_r, size_s = ((phi.square().sum(1) + TINY).sqrt() for phi in (real_G2T, syn_G2T))
    amplitude = (size_r - size_s).square()
    phase = (2 * (size_r * size_s - (real_G2T * syn_G2T).sum(1))).clamp(min=TINY)
    return (alpha * amplitude + beta * phase + TINY).sqrt().mean(1)


class Psi(nn.Module):
    """Noise [M, D] to scales in (-1, 1): three times [linear, batch normalisation, leaky ReLU; tanh at the end]."""

    def __init__(self, width: int, rng: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=rng))

        self.weights = nn.ParameterList(uniform(width, width) for _ in range(3))
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(width)) for _ in range(3))
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(3))

    def forward(self, noise_MD: Tensor) -> Tensor:
        x = noise_MD
        for i in range(3):
            x = F.linear(x, self.weights[i])
            x = x - x.mean(0)
            x = x * torch.rsqrt(x.square().mean(0) + 1e-5) * self.gains[i] + self.shifts[i]
            x = F.leaky_relu(x, 0.2) if i < 2 else x.tanh()
        return x


@dataclass(frozen=True, kw_only=True)
class PsiConfig:
    """The frequency network: SGD by ascent, as published."""

    per_component: int = 16
    """Frequencies drawn from each component of the mixture."""
    reach: float = 3.0
    """The largest scale, beside 1 for N(0, I)."""
    lr: float = 0.001
    momentum: float = 0.5


class Ncfm(Classwise):
    needs: ClassVar[frozenset[str]] = frozenset({"pool", "real"})
    gives: ClassVar[frozenset[str]] = Classwise.gives | {"teacher"}

    @dataclass(frozen=True, kw_only=True)
    class Config(Classwise.Config):
        batch_real: int = 1024
        augment: AugmentConfig = field(
            default_factory=lambda: AugmentConfig(ops=("color", "crop", "cutout"), policy="always", share="batch")
        )
        frequencies: int = 4096
        """T; with psi the paper takes 1,024."""
        sigma: float = 1.0
        """Scale of the frequencies, with psi and without."""
        alpha: float = 0.5
        """Weight of the amplitude (diversity)."""
        beta: float = 0.5
        """Weight of the phase (realism)."""
        scale: float = 300.0
        """The release multiplies the loss by this; it sets the balance with the terms and psi's learning rate."""
        pool: int = 20
        """Experts whose networks are drawn, anywhere between initialisation and end; 0: fresh networks."""
        psi: PsiConfig | None = None
        """The learned frequency network; null: frequencies from N(0, I)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.frequencies < 1:
                raise refuse("objective.frequencies", self.frequencies, "at least 1")
            if self.psi is not None and (
                self.psi.per_component < 1
                or self.frequencies % self.psi.per_component
                or self.frequencies // self.psi.per_component < 2
            ):
                allowed = f"a multiple of psi.per_component={self.psi.per_component}, twice that at least"
                raise refuse("objective.frequencies", self.frequencies, allowed)
            if self.alpha < 0 or self.beta < 0 or self.alpha + self.beta == 0:
                raise refuse("objective.alpha, beta", (self.alpha, self.beta), "not negative, one above 0")
            for name, number in (("sigma", self.sigma), ("scale", self.scale)):
                if not number > 0:
                    raise refuse(f"objective.{name}", number, "above 0")
            if self.pool < 0:
                raise refuse("objective.pool", self.pool, "a number of experts, or 0 for fresh networks")

        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"pool" if self.pool else "nets", "real"})

        @property
        def gives(self) -> frozenset[str]:
            return Ncfm.gives if self.pool else Classwise.gives

        def build(self, inputs: Inputs) -> Ncfm:
            return Ncfm(self, inputs)

    def __init__(self, config: Config, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.config = config
        if not config.pool:
            refuse_untrained_batch_norm(inputs)
        elif inputs.experts < config.pool:
            raise refuse(
                "objective.pool",
                config.pool,
                f"at most the {inputs.experts} experts of the buffer",
                f"train more (expert.experts={config.pool}) or set objective.pool={inputs.experts}",
            )
        theta_P, blank = torch.zeros(inputs.net.size), torch.zeros(1, *inputs.spec.shape)
        self.width = inputs.net.features(theta_P, blank)[-1].shape[1]
        self.psi = Psi(self.width, generator(inputs.seed, "psi")) if config.psi else None
        self._characteristic = compiled(characteristic, inputs.device, inputs.compiled)

    def players(self) -> list[Player]:
        if self.psi is None or self.config.psi is None:
            return []
        c = self.config.psi
        sgd = OptimiserConfig(name="sgd", lr=c.lr, momentum=c.momentum)
        return [Player("psi", tuple(self.psi.parameters()), optimiser=sgd, sign=-1)]

    def source(self, step: int) -> Source:
        c, inputs = self.config, self.inputs
        rng = generator(inputs.seed, "frequencies", step)
        noise = [torch.randn(c.frequencies, self.width, generator=rng)]
        if c.psi is not None:
            noise.append(torch.randn(c.frequencies // c.psi.per_component, self.width, generator=rng))
        drawn = tuple(z.to(inputs.device) for z in noise)
        if not c.pool:
            return Source(super().source(step).theta_P, None, drawn)
        rng = generator(inputs.seed, "net", step)
        expert = int(torch.randint(c.pool, (), generator=rng))
        start_P, end_P = (inputs.theta(expert, epoch).float() for epoch in (0, inputs.last_epoch))
        return Source(torch.lerp(end_P, start_P, float(torch.rand((), generator=rng))), end_P, drawn)

    def frequencies(self, source: Source) -> Tensor:
        """t [T, D]; with psi, differentiable in its parameters."""
        c = self.config
        if self.psi is None or c.psi is None:
            return c.sigma * source.noise[0]
        z_TD, noise_MD = source.noise
        scales_MD: Tensor = c.sigma * c.psi.reach * self.psi(noise_MD)
        return scales_MD.repeat_interleave(c.psi.per_component, 0) * z_TD

    def phi(self, features_GmD: Tensor, t_TD: Tensor) -> Tensor:
        """Characteristic functions of L2-normalised features."""
        return self._characteristic(F.normalize(features_GmD, dim=-1).to(self.dtype), t_TD)  # type: ignore[no-any-return]

    def forward(self, codec: Codec, item: Item, data: Batch) -> Match:
        c, source = self.config, data.source
        syn = self.synthetic(codec, item)
        t_TD = self.frequencies(source).to(self.dtype)
        real = [self.phi(self.embed_real(source.theta_P, part)[None], t_TD) for part in data.real_GnCHW]
        syn_G2T = syn.by_class(lambda part: self.phi(part, t_TD), self.embed(source.theta_P, syn.views_NCHW))
        apart_G = discrepancy(torch.cat(real), syn_G2T, c.alpha, c.beta)
        scene = self.scene(data, source.theta_P, syn)
        if source.teacher_P is not None:
            scene["teacher"] = source.teacher_P
        return Match(c.scale * apart_G.sum(), {"apart": apart_G.mean()}, scene)


class Calibrate(Term):
    asks: ClassVar[frozenset[str]] = frozenset({"images", "labels", "teacher"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        weight: float = 1.0
        augment: AugmentConfig = field(
            default_factory=lambda: AugmentConfig(ops=("color", "crop", "cutout"), policy="always", share="batch")
        )

        def __post_init__(self) -> None:
            if not self.weight >= 0:
                raise refuse("calibrate.weight", self.weight, "at least 0")

        def build(self, inputs: Inputs, codec: Codec) -> Calibrate:
            return Calibrate(self, inputs)

    def __init__(self, config: Config, inputs: Inputs) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs
        self.weigh(config.weight)
        self.augment = config.augment.build()
        dtype = DTYPES[inputs.precision]

        def losses(theta_P: Tensor, images_NCHW: Tensor, targets_NK: Tensor) -> Tensor:
            logits_NK = inputs.net(theta_P.to(dtype), images_NCHW.to(dtype)).float()
            return -(targets_NK * F.log_softmax(logits_NK, dim=1)).sum(1)

        self._losses = compiled(losses, inputs.device, inputs.compiled)

    def value(self, codec: Codec, item: Item, match: Match) -> Match:
        if "teacher" not in match.scene:
            allowed = "an objective with a pool of trained networks"
            raise refuse("method.terms", "calibrate", allowed, "set objective.pool above 0")
        images_NCHW, labels_NK = match.scene["images"], match.scene["labels"]
        rng = generator(item.seed, "calibrate")
        draw = self.augment.draw(rng, len(images_NCHW), self.inputs.spec.shape)
        losses_N = self._losses(match.scene["teacher"], self.augment(images_NCHW, draw), labels_NK)
        class_N = labels_NK.detach().argmax(1)
        share_N = 1 / torch.bincount(class_N, minlength=labels_NK.shape[1])[class_N]
        value = (losses_N * share_N).sum()
        return Match(value, {"calibration": value.detach() / len(class_N.unique())})
