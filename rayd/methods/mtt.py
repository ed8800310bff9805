"""Matching training trajectories. Cazenavette et al., CVPR 2022, arXiv:2203.11932; DATM (Guo et al., ICLR 2024,
arXiv:2310.05773) and TESLA (Cui et al., ICML 2023, arXiv:2211.10586) are settings of it.

    L = ||theta_N - theta*||^2 / ||theta_0 - theta*||^2,   theta_0 = expert[t], theta* = expert[t + M],
    theta_{i+1} = theta_i - beta * grad CE(f(theta_i, A(x_i)), y_i)

beta is learned as its raw value by plain SGD, with a momentum of its own, and kept at 0.001 or above after each step, as
in HaBa's and SPEED's code (MTT's has no floor): published rates and momenta hold as they stand.

What we changed: the gradient is exact in one step's memory (rayd.distill.unroll); t, expert, minibatches and augmentation
are drawn from (seed, step, item). DATM: t comes from [first, T(step)) with
T(step) = grow_from + (last - grow_from) * step / grow_steps, at most `last`, and an item whose loss exceeds `skip_above`
is left out; its learned labels are the codec's. TESLA: `gradient: tesla` freezes the adjoint (not MTT's gradient).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from rayd.data.augment import AugmentConfig
from rayd.data.transform import Transform
from rayd.distill.budget import Stored
from rayd.distill.contract import Codec, Inputs, Item, Match, Objective, OptimiserConfig, Player
from rayd.distill.unroll import Inner, Split, cross_entropy, unroll
from rayd.errors import Failed, refuse
from rayd.experts.trajectory import Segment
from rayd.seeds import generator, seed_of

FLOOR = 0.001
"""The least that a learned step size can be."""
APART = 0.99
"""Loss from which a student ends where it began."""


class Mtt(Objective):
    needs: ClassVar[frozenset[str]] = frozenset({"segment"})
    uses_labels: ClassVar[bool] = True
    multiclass: ClassVar[bool] = True
    gives: ClassVar[frozenset[str]] = frozenset({"net", "theta", "target", "step_size"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        inner_steps: int = 20
        """N: steps of the student."""
        expert_epochs: int = 2
        """M: epochs of the expert that those steps must cover."""
        first: int = 0
        """Earliest start epoch."""
        last: int = 5
        """Start epochs are below this."""
        grow_from: int | None = None
        """DATM: the ceiling starts here ..."""
        grow_steps: int = 0
        """... and reaches `last` after this many steps."""
        skip_above: float | None = None
        """DATM: items with a loss above this are left out."""
        batch: int | None = 100
        """Images of one inner step (bases under one hallucinator, of HaBa); null takes as many as the codec has."""
        step_size: float = 0.01
        """beta_0."""
        learn_step: bool = True
        """Whether beta is learned; where not, it stays beta_0."""
        lr_step: float = 1e-5
        """SGD's, of beta itself."""
        step_momentum: float = 0.5
        """SGD's, for beta alone."""
        items: int = 1
        """Segments per step. More workers than segments share the images of a segment's inner batches."""
        gradient: Literal["exact", "tesla"] = "exact"
        """tesla drops the Hessian terms of the exact one."""
        micro: int = 1
        """Parts that an inner batch is split into, exactly; divides memory."""
        augment: AugmentConfig = field(default_factory=AugmentConfig)
        """Of the synthetic images at every inner step."""

        def __post_init__(self) -> None:
            for name in ("inner_steps", "expert_epochs", "items", "micro"):
                if getattr(self, name) < 1:
                    raise refuse(f"objective.{name}", getattr(self, name), "at least 1")
            if not 0 <= self.first < self.last:
                raise refuse("objective.first", self.first, f"0 <= first < last={self.last}")
            if self.grow_from is not None and not self.first < self.grow_from <= self.last:
                raise refuse(
                    "objective.grow_from", self.grow_from, f"above first={self.first}, at most last={self.last}"
                )
            if not self.step_size > 0:
                raise refuse("objective.step_size", self.step_size, "a positive number")
            if self.learn_step and self.step_size < FLOOR:
                raise refuse("objective.step_size", self.step_size, f"at least {FLOOR}, the least that one can learn")
            if self.batch is not None and (self.batch < 1 or self.batch % self.micro):
                raise refuse("objective.batch", self.batch, f"a positive multiple of micro={self.micro}")

        @property
        def last_epoch(self) -> int:
            """The last expert epoch that can be matched: what a buffer must hold, and all it needs to."""
            return self.last - 1 + self.expert_epochs

        @property
        def passes(self) -> int:
            """How often the workers of one segment sum as many numbers as the network has. The start of a segment needs no
            derivative, so the first inner step is summed forward alone."""
            return 2 * self.inner_steps - 1 if self.gradient == "exact" else self.inner_steps

        def build(self, inputs: Inputs) -> Mtt:
            return Mtt(self, inputs)

    def __init__(self, config: Config, inputs: Inputs) -> None:
        super().__init__()
        if inputs.last_epoch < config.last_epoch:
            raise refuse(
                "objective.last",
                config.last,
                f"a window within the buffer's {inputs.last_epoch} epochs (it reaches to epoch {config.last_epoch})",
                "train longer experts (expert.epochs) or lower objective.last",
            )
        self.config, self.inputs = config, inputs
        self.step = nn.Parameter(torch.tensor(config.step_size, device=inputs.device))
        self.augment = config.augment.build()
        loss = cross_entropy(inputs.net, inputs.precision)
        exact = config.gradient == "exact"
        self.inner = Inner(loss, inputs.device, compile=inputs.compiled, micro=config.micro, exact=exact)

    def share(self, split: Split) -> None:
        if self.inputs.net.norm == "batch":
            allowed = "another norm where workers share a segment: a batch's statistics are of all its images"
            raise refuse("net.norm", "batch", allowed, "raise method.objective.items to scale.workers")
        self.split = split

    def step_size(self) -> float:
        return float(self.step.detach())

    def stuck(self, value: float) -> str:
        if not self.config.learn_step or value < APART or bool(self.step > FLOOR):
            return ""
        return (
            f"the learned step size is at its floor of {FLOOR}, and the student ends where it began (loss {value:.3g})"
        )

    def players(self) -> list[Player]:
        if not self.config.learn_step:
            return []
        sgd = OptimiserConfig(name="sgd", lr=self.config.lr_step, momentum=self.config.step_momentum)
        return [Player("step_size", (self.step,), optimiser=sgd)]

    @torch.no_grad()
    def project(self, transform: Transform) -> None:
        if self.config.learn_step:
            self.step.clamp_(min=FLOOR)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Version 0.1 kept the logarithm of the step size."""
        former = {"step": state["log_step"].exp()} if "log_step" in state else {}
        super().load({key: tensor for key, tensor in state.items() if key != "log_step"} | former)

    def stored(self) -> dict[str, Stored]:
        return {"step_size": Stored(self.step.detach().reshape(1), "step")}

    def halve(self) -> bool:
        self.inner.micro *= 2
        return self.inputs.net.norm != "batch" and self.inner.micro <= (self.config.batch or self.inner.micro)

    def ceiling(self, step: int) -> int:
        """Start epochs of this step are below this."""
        c = self.config
        if c.grow_from is None:
            return c.last
        return min(c.last, c.grow_from + (c.last - c.grow_from) * step // max(c.grow_steps, 1))

    def plan(self, step: int) -> list[Item]:
        items = []
        for number in range(self.config.items):
            seed = seed_of(self.inputs.seed, "item", step, number)
            rng = generator(seed, "segment")
            expert = int(torch.randint(self.inputs.experts, (), generator=rng))
            first = int(torch.randint(self.config.first, self.ceiling(step), (), generator=rng))
            what = {"expert": expert, "first": first, "last": first + self.config.expert_epochs}
            items.append(Item(step, number, seed, what))
        return items

    def fetch(self, item: Item) -> Segment:
        return self.inputs.segment(**item.what)

    def forward(self, codec: Codec, item: Item, data: Segment) -> Match:
        c = self.config
        device = self.inputs.device
        start, end = data.start_P.to(device), data.end_P.to(device)
        distance = (start - end).square().sum()
        if not torch.isfinite(distance) or distance == 0:
            raise Failed(
                f"segment {dict(item.what)}: distance from start to end is {float(distance)}; the buffer holds a row "
                "that is not finite or two equal rows; run jobs.experts verify=true"
            )
        n = min(c.batch or codec.full_batch, codec.full_batch)
        indices = codec.draws(generator(item.seed, "index"), n, c.inner_steps)
        if n < self.split.of:
            raise refuse("scale.workers", self.split.of, f"at most the {n} images of an inner batch, for each item")
        split = replace(self.split, images=n)
        shape, here = (n, *codec.spec.shape), split.places()
        draws = [self.augment.draw(generator(item.seed, "augment", i), n, shape) for i in range(c.inner_steps)]

        def batch(i: int) -> tuple[Tensor, Tensor]:
            images, targets = codec.decode(indices[i][here])
            return self.augment(images, draws[i].rows(here.start, here.stop)), targets

        leaves = [p for p in codec.parameters() if p.requires_grad]
        theta = unroll(self.inner, start, batch, c.inner_steps, self.step, leaves, split)
        value = (theta - end).square().sum() / distance
        skip = c.skip_above is not None and float(value.detach()) > c.skip_above
        metrics: dict[str, Tensor | float] = {"step_size": self.step_size(), "start": float(item.what["first"])}
        scene = {"net": self.inputs.net, "theta": start, "target": end, "step_size": self.step}
        return Match(value, metrics, scene, skip=skip)
