"""One loop for every method: a generator of Steps over planned items, resumable from its state.

The caller says which share of the items is this worker's and gives a `reduce` that sums a flat vector over the workers
(identity for one). It never sees storage or Ray. Every worker holds the same state and takes the same optimiser step.
Items are summed in double precision: the order of the sum, and so the number of workers, is then lost in rounding to
single precision, where a single-precision sum would let Adam blow the last bit up.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from rayd.distill.contract import Codec, Item, Match, Objective, Player, Term
from rayd.distill.contract import Inputs as Inputs
from rayd.errors import Failed, refuse

State = dict[str, Tensor]
Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """The run's own optimiser; a player may ask for another."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Of the codec's parameters."""
    lr: float = 0.01
    """For the unit of pixels; factors scale it so that a step moves the decoded images alike."""
    momentum: float = 0.5
    """sgd's momentum, adam's first beta when above 0.5"""
    weight_decay: float = 0.0
    """Zero unless a paper decays its images."""
    decay: Literal["constant", "cosine"] = "constant"
    """Of the rate; cosine: to zero at the last step."""

    def __post_init__(self) -> None:
        if not self.lr > 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise refuse("optimiser", self, "lr > 0, 0 <= momentum < 1, weight_decay >= 0")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens when a step goes wrong: it is skipped; `patience` bad ones in a row roll back to the last checkpoint;
    more than `rollbacks` of those end the run with a diagnosis."""

    patience: int = 3
    """Bad steps in a row that roll back to the last checkpoint."""
    rollbacks: int = 2
    """More of them end the run with a diagnosis."""
    max_step_size: float = 10.0
    """A learned step size above this has exploded."""

    def __post_init__(self) -> None:
        if self.patience < 1 or self.rollbacks < 0 or not self.max_step_size > 0:
            raise refuse("guard", self, "patience >= 1, rollbacks >= 0, max_step_size > 0")


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


def make_optimiser(player: Player, config: OptimiserConfig) -> torch.optim.Optimizer:
    """A player's own optimiser. Its scale is for updates of unit size; sgd's carry the scale in the gradient once more."""
    name = player.optimiser or config.name
    scale = player.scale**2 if name == "sgd" else player.scale
    lr = player.lr if player.lr is not None else config.lr * scale
    momentum = player.momentum if player.momentum is not None else config.momentum
    decay = player.weight_decay or config.weight_decay
    params = list(player.params)
    if name == "sgd":
        return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=decay)
    betas = (max(momentum, 0.5), 0.999)
    if name == "adam":
        return torch.optim.Adam(params, lr=lr, betas=betas, weight_decay=decay)
    return torch.optim.AdamW(params, lr=lr, betas=betas, weight_decay=decay)


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
        self.optimisers = [make_optimiser(p, optimiser) for p in self.players]
        self.rates = [o.param_groups[0]["lr"] for o in self.optimisers]
        self.number = 0
        self.bad = self.rolled = self.skipped = 0
        self.ema_decay = ema
        self.average = {k: v.detach().clone() for k, v in codec.state_dict().items()} if ema else {}
        self.good: State | None = None

    # ---- state ------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Everything a resume needs, as flat named tensors."""
        out: State = {"step": torch.tensor([self.number, self.bad, self.rolled, self.skipped])}
        for name, part in self._parts():
            out |= {f"{name}/{k}": v for k, v in part.state().items()}
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
        self.number, self.bad, self.rolled, self.skipped = (int(v) for v in state["step"])
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
        self.good = self.good or self.state()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch") as pool:
            ahead = self._ask(pool, self.number)
            while self.number < self.steps:
                began = time.perf_counter()
                items, data = ahead[0], [f.result() for f in ahead[1]]
                if self.number + 1 < self.steps:
                    ahead = self._ask(pool, self.number + 1)
                step = self._step(items, data)
                step.seconds = time.perf_counter() - began
                yield step

    def _ask(self, pool: ThreadPoolExecutor, number: int) -> tuple[list[Item], list[Future[Any]]]:
        rank, size = self.share
        mine = [item for item in self.objective.plan(number) if item.number % size == rank]
        return mine, [pool.submit(self.objective.fetch, item) for item in mine]

    def _step(self, items: list[Item], data: list[Any]) -> Step:
        self._schedule()
        params = [p for player in self.players for p in player.params]
        totals = [torch.zeros_like(p, dtype=torch.float64) for p in params]
        tally = torch.zeros(3, dtype=torch.float64, device=self.inputs.device)  # value, items that count, items skipped
        metrics: dict[str, Tensor] = {}
        for item, datum in zip(items, data, strict=True):
            match = self.objective(self.codec, item, datum)
            for term in self.terms:
                match = term(self.codec, item, match)
            value = match.value.detach().double().reshape(())
            if match.skip:
                tally += torch.stack([torch.zeros_like(value), torch.zeros_like(value), torch.ones_like(value)])
                continue
            tally += torch.stack([value, torch.ones_like(value), torch.zeros_like(value)])
            for k, v in match.metrics.items():
                metrics[k] = metrics.get(k, torch.zeros_like(value)) + torch.as_tensor(v, device=value.device).detach()
            self._add_gradients(match, totals)
        flat = self.reduce(torch.cat([tally, *(t.flatten() for t in totals)]))
        value_sum, count, skips = (float(v) for v in flat[:3])
        mean = self.objective.reduction == "mean"
        gradient = flat[3:] / count if mean and count else flat[3:]
        norm = float(gradient.norm())
        self.number += 1
        step = Step(self.number, value_sum / count if mean and count else value_sum)
        step.metrics = {k: float(v) / len(items) for k, v in metrics.items()} | {
            "grad_norm": norm,
            "items_skipped": skips,
        }
        step.skipped = self._take(gradient, count, norm, step.value)
        return step

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

    def _take(self, gradient: Tensor, count: float, norm: float, value: float) -> str:
        """The optimiser step, or why there is none."""
        if count == 0:
            self.skipped += 1
            self.objective.after(self.codec, self.number - 1)
            return "every item was above the threshold"
        if not (math.isfinite(norm) and math.isfinite(value)):
            return self._bad(f"loss {value:.3g}, gradient norm {norm:.3g}")
        at = 0
        for player, optimiser in zip(self.players, self.optimisers, strict=True):
            for p in player.params:
                p.grad = gradient[at : at + p.numel()].view_as(p).to(p.dtype)
                at += p.numel()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.codec.project(self.inputs.transform)
        rate = self.step_size()
        if rate is not None and not 0 < rate <= self.guard.max_step_size:
            return self._bad(f"step size {rate:.3g}", restore=True)
        self.objective.after(self.codec, self.number - 1)
        if self.average:
            with torch.no_grad():
                for k, v in self.codec.state_dict().items():
                    self.average[k].lerp_(v, 1 - self.ema_decay)
        self.bad = 0
        return ""

    def _bad(self, what: str, restore: bool = False) -> str:
        self.bad += 1
        self.skipped += 1
        if self.bad < self.guard.patience and not restore:
            return what
        assert self.good is not None
        number, rolled, skipped = self.number, self.rolled + 1, self.skipped
        self.load(self.good)
        if rolled > self.guard.rollbacks:
            raise Failed(
                f"step {number}: {what}, after {rolled - 1} rollbacks and {skipped} skipped steps. The last "
                f"good state is kept. Knobs: method.objective.step_size or lr_step (smaller), method.optimiser.lr "
                f"(smaller), method.objective.skip_above, precision=fp32; then submit again with another out."
            )
        self.number, self.rolled, self.skipped, self.bad = number, rolled, skipped, 0
        return f"{what}: rolled back to step {int(self.good['step'][0])}"

    def step_size(self) -> float | None:
        """The learned step size of the inner loop, if the objective has one."""
        rate = getattr(self.objective, "step_size", None)
        return float(rate()) if callable(rate) else None

    def _schedule(self) -> None:
        factor = 1.0
        if self.optimiser.decay == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * self.number / self.steps))
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor


def _under(state: Mapping[str, Tensor], prefix: str) -> State:
    cut = len(prefix) + 1
    return {k[cut:]: v for k, v in state.items() if k.startswith(prefix + "/")}
