"""One loop for every method: a generator of Steps over planned items, resumable from its state.

The caller says which share of the items is this worker's and gives a `reduce` that sums a flat vector over the workers
(identity for one). The loop never sees storage or Ray. Every worker holds the same state and takes the same step.
Items are summed in float64 so that the result does not depend on the number of workers; in float32 Adam amplifies the
rounding difference.

What to do with a step is decided in guard.py, by pure functions of what every worker knows.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rayd.distill.contract import Codec, Inputs, Item, Match, Objective, Player, Term
from rayd.distill.contract import OptimiserConfig as OptimiserConfig
from rayd.distill.guard import TALLY, Act, Record, Tally, Verdict, bad, knobs, verdict
from rayd.distill.guard import GuardConfig as GuardConfig
from rayd.distill.items import fetched, own_items
from rayd.distill.storage import through
from rayd.distill.unroll import WHOLE
from rayd.errors import Failed

State = dict[str, Tensor]
Reduce = Callable[[Tensor], Tensor]


@dataclass
class Step:
    number: int
    value: float
    metrics: dict[str, float] = field(default_factory=dict)
    skipped: str = ""
    """Why the step changed nothing; empty for a good step."""
    seconds: float = 0.0


def identity(flat: Tensor) -> Tensor:
    return flat


def make_optimiser(player: Player, run: OptimiserConfig, unit: float = 1.0) -> torch.optim.Optimizer:
    """A player's own optimiser, or the run's. `unit`: RMS of the network space.

    A player's scale is for updates of unit size, as Adam's are, and those are in the unit of the space. The update of SGD
    carries the scale in its gradient once more, and its rate is as published.
    """
    config = player.optimiser or run
    lr, scale = config.lr, player.scale
    if scale is not None and player.optimiser is None:
        lr = lr * scale**2 if config.name == "sgd" else lr * scale * unit
    params, decay = list(player.params), config.weight_decay
    if config.name == "sgd":
        return torch.optim.SGD(params, lr=lr, momentum=config.momentum, weight_decay=decay)
    adam = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return adam(params, lr=lr, betas=(max(config.momentum, 0.5), config.beta2), weight_decay=decay)


class Distillation:
    """The state of one distillation and its loop."""

    def __init__(
        self,
        codec: Codec,
        objective: Objective,
        terms: list[Term],
        *,
        steps: int,
        optimiser: OptimiserConfig,
        inputs: Inputs,
        guard: GuardConfig | None = None,
        ema: float = 0.0,
        through: int | None = None,
        share: tuple[int, int] = (0, 1),
        reduce: Reduce = identity,
    ) -> None:
        self.codec, self.objective, self.terms, self.inputs = codec, objective, terms, inputs
        self.steps, self.optimiser, self.share, self.reduce = steps, optimiser, share, reduce
        self.guard = guard or GuardConfig()
        self.players = [p for part in (codec, objective, *terms) for p in part.players()]
        names = [p.name for p in self.players]
        if len(set(names)) != len(names):
            raise ValueError(f"players share a name: {names}")
        unit = inputs.transform.unit if inputs.transform is not None else 1.0
        self.optimisers = [make_optimiser(p, optimiser, unit) for p in self.players]
        self.rates = [o.param_groups[0]["lr"] for o in self.optimisers]
        self.codec_numbers = sum(p.numel() for player in codec.players() for p in player.params) or None
        self.record = Record()
        self.ema_decay, self.through = ema, through
        self.average = {k: v.detach().clone() for k, v in codec.state_dict().items()} if ema else {}
        self.good: State | None = None

    @property
    def number(self) -> int:
        """Steps that are done."""
        return self.record.number

    # ---- state ------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Everything a resume needs, as flat named tensors."""
        out: State = {"step": self.record.tensor()}
        out |= {f"{name}/{k}": v for name, part in self._parts() for k, v in part.state().items()}
        out |= {f"ema/{k}": v.clone() for k, v in self.average.items()}
        for player, optimiser in zip(self.players, self.optimisers, strict=True):
            for index, entry in optimiser.state_dict()["state"].items():
                for key, value in entry.items():
                    if value is not None:
                        out[f"optimiser/{player.name}/{index}/{key}"] = torch.as_tensor(value).detach().clone()
        return out

    def checkpoint(self) -> State:
        """The state, remembered as the one to roll back to. Taken at planned steps, so a resumed run rolls back alike."""
        self.good = self.state()
        return self.good

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.record = Record.of(state["step"])
        for name, part in self._parts():
            part.load(_under(state, name))
        self.average = {k: v.clone() for k, v in _under(state, "ema").items()}
        for player, optimiser in zip(self.players, self.optimisers, strict=True):
            entries: dict[int, dict[str, Tensor]] = {}
            for path, value in _under(state, f"optimiser/{player.name}").items():
                index, key = path.split("/")
                entries.setdefault(int(index), {})[key] = value.clone()
            full = optimiser.state_dict()
            optimiser.load_state_dict({"state": entries, "param_groups": full["param_groups"]})

    def _parts(self) -> list[tuple[str, Codec | Objective | Term]]:
        return [
            ("codec", self.codec),
            ("objective", self.objective),
            *((f"term{i}", t) for i, t in enumerate(self.terms)),
        ]

    def averaged(self) -> Codec:
        """The codec to hand over: the running average where one is kept."""
        if not self.average:
            return self.codec
        codec = copy.deepcopy(self.codec)
        codec.load_state_dict(self.average)
        return codec

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Step]:
        """Steps from where the state stands to the last."""
        self._balance()
        self.good = self.good or self.state()
        coming = range(self.number, self.steps)
        every = (item for number in coming for item in own_items(self.objective, self.share, number))
        with closing(fetched(every, self.objective.fetch)) as data:
            for number in coming:
                began = time.perf_counter()
                step = self._step(own_items(self.objective, self.share, number), data)
                step.seconds = time.perf_counter() - began
                yield step

    def _balance(self) -> None:
        """Weights that follow from gradients, at the first item of the first step: the same on every worker."""
        split, self.objective.split = self.objective.split, WHOLE
        for term in self.terms:
            if term.ratio is None or not term.unweighted:
                continue
            item = self.objective.plan(0)[0]
            params = [p for player in self.codec.players() for p in player.params]
            norms = []
            for own in (False, True):  # a graph each: a compiled one is gone after its gradient
                match = self.objective(self.codec, item, self.objective.fetch(item))
                loss = term.value(self.codec, item, match).value if own else match.value
                parts = torch.autograd.grad(loss, params, allow_unused=True)
                norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in parts if g is not None)))
            term.balance(*norms)
        self.objective.split = split

    def _as_kept(self) -> AbstractContextManager[None]:
        """Within, the codec holds the numbers of its file, from the step `through` on."""
        rounds = self.through is not None and self.number >= self.through
        return through(self.codec, self.codec.quantise) if rounds else nullcontext()

    def _step(self, items: list[Item], data: Iterator[Any]) -> Step:
        self._schedule()
        with self._as_kept():
            flat, metrics = self._sum(items, data)
        tally, gradient = Tally(*flat[:TALLY].tolist()), flat[TALLY:]
        mean = self.objective.reduction == "mean" and tally.items > 0
        gradient = gradient / tally.items if mean else gradient
        norm, codec_norm = float(gradient.norm()), float(gradient[: self.codec_numbers].norm())
        stuck = self.objective.stuck(tally.value / tally.items) if tally.items else ""
        decision = verdict(self.guard, self.record, tally, norm, codec_norm, self.number + 1 == self.steps, stuck)
        step = Step(self.number + 1, tally.value / tally.items if mean else tally.value)
        step.metrics = metrics | {"grad_norm": norm, "items_skipped": tally.skipped}
        if decision.act is Act.STEP:
            decision = self._move(gradient, decision)
        elif decision.act is Act.SKIP and tally.items == 0:
            self.objective.after(self.codec, self.number)
        step.skipped = self._conclude(decision)
        return step

    def _sum(self, items: list[Item], data: Iterator[Any]) -> tuple[Tensor, dict[str, float]]:
        """The tally and every player's gradient over the items of all workers, and the metrics of this one's."""
        params = [p for player in self.players for p in player.params]
        totals = [torch.zeros_like(p, dtype=torch.float64) for p in params]
        tally = torch.zeros(TALLY, dtype=torch.float64, device=self.inputs.device)
        metrics: dict[str, Tensor] = {}
        first = self.objective.split.number == 0  # of the workers of an item: it counts the item and has its terms
        for item in items:
            match = self.objective(self.codec, item, next(data))
            for term in self.terms if first else ():
                match = term(self.codec, item, match)
            value = match.value.detach().double().reshape(())
            nothing, one = torch.zeros_like(value), torch.ones_like(value)
            if first:
                tally += torch.stack([nothing, nothing, one] if match.skip else [value, one, nothing])
            if match.skip:
                continue
            for k, v in match.metrics.items():
                metrics[k] = metrics.get(k, nothing) + torch.as_tensor(v, device=value.device).detach()
            self._add_gradients(match, totals)
        flat = self.reduce(torch.cat([tally, *(t.flatten() for t in totals)]))
        return flat, {k: float(v) / len(items) for k, v in metrics.items()}

    def _add_gradients(self, match: Match, totals: list[Tensor]) -> None:
        """Each player's own gradient of its own loss; nothing is accumulated in a shared `.grad`."""
        rivals = set(match.losses)
        groups: list[tuple[Tensor, list[str]]] = [(match.value, [p.name for p in self.players if p.name not in rivals])]
        groups += [(loss, [name]) for name, loss in match.losses.items()]
        for k, (loss, names) in enumerate(groups):
            places = [(i, p, s) for i, p, name, s in self._numbered() if name in names]
            if not places or not loss.requires_grad:
                continue
            grads = torch.autograd.grad(
                loss, [p for _, p, _ in places], retain_graph=k + 1 < len(groups), allow_unused=True
            )
            for (i, _, sign), g in zip(places, grads, strict=True):
                if g is not None:
                    totals[i].add_(g, alpha=sign)

    def _numbered(self) -> Iterator[tuple[int, Tensor, str, int]]:
        i = 0
        for player in self.players:
            for p in player.params:
                yield i, p, player.name, player.sign
                i += 1

    def _move(self, gradient: Tensor, decision: Verdict) -> Verdict:
        """Every player's optimiser step; another verdict where the step size is too large before or after it."""
        if self._exploded():
            return bad(self.guard, decision.record, f"step size {self.objective.step_size():.3g}", at_once=True)
        at = 0
        for player, optimiser in zip(self.players, self.optimisers, strict=True):
            for p in player.params:
                p.grad = gradient[at : at + p.numel()].view_as(p).to(p.dtype)
                at += p.numel()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        for part in (self.codec, self.objective):
            part.project(self.inputs.transform)
        if self._exploded():
            return bad(self.guard, decision.record, f"step size {self.objective.step_size():.3g}", at_once=True)
        with self._as_kept():
            self.objective.after(self.codec, self.number)
        with torch.no_grad():
            for k, v in (self.codec.state_dict() if self.average else {}).items():
                self.average[k].lerp_(v, 1 - self.ema_decay)
        return decision

    def _exploded(self) -> bool:
        rate = self.objective.step_size()
        return rate is not None and not 0 < rate <= self.guard.max_step_size

    def _conclude(self, decision: Verdict) -> str:
        """Remember, roll back or end as decided; why the step changed nothing, if it did not."""
        if decision.act in (Act.STEP, Act.SKIP):
            self.record = decision.record
            return decision.why
        assert self.good is not None
        self.load(self.good)
        if decision.act is Act.END:
            raise Failed(f"step {decision.record.number}: {decision.why}. {knobs(self.objective.step_size())}")
        good, self.record = self.number, decision.record
        return f"{decision.why}: rolled back to step {good}"

    def _schedule(self) -> None:
        """The rate of this step, by each optimiser's own decay."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.number / self.steps))
        factors = {"constant": 1.0, "cosine": cosine, "plateau": self.record.factor}
        for player, optimiser, rate in zip(self.players, self.optimisers, self.rates, strict=True):
            config = player.optimiser or self.optimiser
            for group in optimiser.param_groups:
                group["lr"] = rate * factors[config.decay]


def _under(state: Mapping[str, Tensor], prefix: str) -> State:
    cut = len(prefix) + 1
    return {k[cut:]: v for k, v in state.items() if k.startswith(prefix + "/")}
