"""Real images chosen without learning any: the controls a synthetic set must beat.

Each picks, for every class, an order of its members; a set of n images takes the classes in turn, each in its order.

Shapes: N members of a class, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rayd.data.images import Images
from rayd.errors import refuse
from rayd.seeds import generator

Features = Callable[[Tensor], Tensor]
"""index_N -> features_ND"""
Pick = Callable[[Tensor, int], Tensor]
"""features_ND, n -> n indices, best first"""
KINDS = ("random", "herding", "kcentre")


def orders(
    kind: str, images: Images, most: int, seed: int, features: Features | None, own: Mapping[str, Pick] | None = None
) -> list[Tensor]:
    """Up to `most` indices of every class, best first. Features are asked for class by class. `own`: kinds of one's own."""
    picks: dict[str, Pick] = {"herding": herding, "kcentre": k_centre, **(own or {})}
    if kind != "random" and kind not in picks:
        raise refuse("controls", kind, " | ".join(("random", *picks)))
    out = []
    for c in range(len(images.classes)):
        members = images.distinct(c)
        if kind == "random":
            out.append(members[torch.randperm(len(members), generator=generator(seed, "random", c))][:most])
            continue
        assert features is not None
        out.append(members[picks[kind](features(members), min(most, len(members))).cpu()])
    return out


def in_turn(orders_by_class: list[Tensor], n: int) -> Tensor:
    """n indices, the classes in turn."""
    places = torch.cat([torch.arange(len(order)) for order in orders_by_class])
    return torch.cat(orders_by_class)[places.argsort(stable=True)[:n]]


def herding(features_ND: Tensor, n: int) -> Tensor:
    """Welling 2009: each pick brings the mean of the picks closest to the mean of all."""
    mean_D = features_ND.mean(0)
    free = torch.ones(len(features_ND), dtype=torch.bool, device=features_ND.device)
    total_D, picks = torch.zeros_like(mean_D), []
    for k in range(n):
        gap_N = (mean_D * (k + 1) - total_D - features_ND).square().sum(1)
        best = int(gap_N.masked_fill(~free, torch.inf).argmin())
        free[best] = False
        total_D += features_ND[best]
        picks.append(best)
    return torch.tensor(picks)


def k_centre(features_ND: Tensor, n: int) -> Tensor:
    """Sener & Savarese 2018, greedy, from the member nearest the mean: each pick is the one farthest from all picks."""
    picks = [int((features_ND - features_ND.mean(0)).square().sum(1).argmin())]
    gap_N = (features_ND - features_ND[picks[0]]).square().sum(1)
    while len(picks) < n:
        picks.append(int(gap_N.argmax()))
        gap_N = torch.minimum(gap_N, (features_ND - features_ND[picks[-1]]).square().sum(1))
    return torch.tensor(picks)
