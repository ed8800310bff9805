"""One factorised core: a contraction with a sharing pattern. LoDC, LSS and NSD are presets of it.

    image[c, h, w] = sum_{a, d, p, q} mix[a] * tint[d, c] * rows[c, p, h] * cols[c, q, w] * core[a, d, p, q]

`core` has one block for each unit. The other four are *banks*: bank[g] is one set of maps, and which set, and which
column of `mix`, an image uses is the preset's sharing pattern, `address`. An absent bank leaves its mode as it is.

    core [U, A, D, P, Q]    mix [G, A, B]    tint [G, D, C]    rows [G, 1 or C, P, H]    cols [G, 1 or C, Q, W]

| preset | core is | mix | tint | rows | cols |
|---|---|---|---|---|---|
| lodc | B [U, 1, C, r, W], one image | - | - | A, each image its own | - |
| lss, one side | V [U, 1, C, r, W], one image | - | - | D, a subspace's images share it | - |
| lss, two sides | S [U, 1, C, r, r], one image | - | - | L, shared, all channels alike | R, likewise |
| nsd | spectrum [U, tB, C, t, t] of many images | KB | KC or - | KH | KW |

Decoding costs matrix products on what the minibatch uses: images of one unit are mixed together, and each bank's maps
are gathered for the images at hand.

Shapes as above; N images of a minibatch, G sets of a bank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayd.data.images import Spec
from rayd.distill.budget import Shapes
from rayd.distill.codec import Family, rank_within_group
from rayd.distill.fit import CodecOptions

BANKS = ("mix", "tint", "rows", "cols")


class Factorised(Family):
    """Parameters of the contraction under their own names; absent banks are None."""

    core: nn.Parameter
    mix: nn.Parameter | None
    tint: nn.Parameter | None
    rows: nn.Parameter | None
    cols: nn.Parameter | None

    def __init__(
        self, config: CodecOptions, spec: Spec, axes: dict[str, int], shapes: Shapes, rng: torch.Generator
    ) -> None:
        """Noise in every factor, scaled so that decoded pixels have variance 1."""
        super().__init__(config, spec, axes)
        for name in ("core", *BANKS):
            if name not in shapes:
                self.register_parameter(name, None)
                continue
            shape = shapes[name][0]
            if name == "core":
                std = full_std(shapes)
            elif name in ("rows", "cols"):
                std = shape[-1] ** -0.5
            else:
                std = shape[-2] ** -0.5
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=rng) * std))

    def address(self, index_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(unit, set of the banks, column of mix) of each image, on the CPU."""
        raise NotImplementedError

    def images(self, index_N: Tensor) -> Tensor:
        unit_N, set_N, column_N = self.address(index_N)
        device = self.core.device
        set_N = set_N.to(device)
        if self.mix is None:
            x_NDPQ = self.core[unit_N.to(device), 0]
        else:
            x_NDPQ = mixed(self.core, unit_N, self.mix[set_N, :, column_N.to(device)])
        if self.tint is not None:
            tint_NCD = pick(self.tint, set_N).transpose(1, 2)
            x_NDPQ = (tint_NCD @ x_NDPQ.flatten(2)).unflatten(2, x_NDPQ.shape[2:])
        if self.rows is not None:
            x_NDPQ = pick(self.rows, set_N).transpose(2, 3) @ x_NDPQ
        return x_NDPQ if self.cols is None else x_NDPQ @ pick(self.cols, set_N)


def full_std(shapes: Shapes) -> float:
    """Standard deviation of a noise core under which decoded pixels have variance 1, the banks being as built."""
    variance = 1.0
    for name in ("rows", "cols"):
        if name in shapes:
            *_, k, side = shapes[name][0]
            variance *= k / side
    return float(variance**-0.5)


def pick(bank: Tensor, set_N: Tensor) -> Tensor:
    return bank if len(bank) == 1 else bank[set_N]


def mixed(core_UADPQ: Tensor, unit_N: Tensor, weight_NA: Tensor) -> Tensor:
    """sum_a weight[n, a] * core[unit[n], a]: one batched product over the units in use, padded to the busiest one."""
    used_G, place_N, count_G = unit_N.unique(return_inverse=True, return_counts=True)
    width = int(count_G.max())
    slot_N = (rank_within_group(place_N) + place_N * width).to(core_UADPQ.device)
    core_GAF = core_UADPQ.flatten(2)
    if len(used_G) < len(core_UADPQ):
        core_GAF = core_GAF[used_G.to(core_UADPQ.device)]
    padded = weight_NA.new_zeros(len(used_G) * width, weight_NA.shape[1]).index_copy(0, slot_N, weight_NA)
    x_NF = (padded.unflatten(0, (len(used_G), width)) @ core_GAF).flatten(0, 1)[slot_N]
    x_NDPQ: Tensor = x_NF.unflatten(1, core_UADPQ.shape[2:])
    return x_NDPQ


# --- subspaces to start from -----------------------------------------------------------------------------------------


def dct(k: int, n: int) -> Tensor:
    """The k lowest rows of the orthonormal DCT-II of length n: [k, n]."""
    frequency_K1, place_N = torch.arange(k)[:, None], torch.arange(n)
    basis_KN = torch.cos(torch.pi / n * (place_N + 0.5) * frequency_K1) * (2 / n) ** 0.5
    basis_KN[0] /= 2**0.5
    return torch.as_tensor(basis_KN)


def leading(x_ND: Tensor, k: int) -> Tensor:
    """Orthonormal basis [k, D] of the k directions with most of the rows' energy, completed where there are fewer."""
    gram_DD = x_ND.double().T @ x_ND.double()
    basis_DD: Tensor = torch.linalg.eigh(gram_DD).eigenvectors.flip(1).T
    return basis_DD[:k].to(x_ND.dtype)
