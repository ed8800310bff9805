"""MTT-LSS, low-rank space sampling. Kong et al., ICASSP 2025, arXiv:2503.07998.

Images live in low-rank subspaces: the images of a subspace share its mappers and own their basis vectors.

    one side:   X = D_g V_i        D_g [C, H, r],  V_i [C, r, W]         G * C * H * r + U * C * r * W floats
    two sides:  X = L_g S_i R_g    L_g [H, r], R_g [r, W], S_i [C, r, r]  G * r * (H + W) + U * C * r^2 floats

and K floats for each image with soft labels, which the paper learns (`labels: soft`); they count. Its progressive
schedule is the objective's growing window (DATM's). The paper's shapes, rank and number of subspaces could not be had:
one side is the literal reading, two sides and subspaces shared by all classes (`scope: global`) are ours. Two sides are
the default: at CIFAR-10 IPC 1, 133 real images lose 10 % of their energy in them (rank 8); 150 lose 33 % in one side
(rank 2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rayd.data.images import Spec
from rayd.distill.budget import Budget, Shapes
from rayd.distill.codec import Factorised, Take, leading
from rayd.distill.fit import CodecOptions, check_rank, equivalent, grow
from rayd.errors import refuse


class Lss(Factorised):
    @dataclass(frozen=True, kw_only=True)
    class Config(CodecOptions):
        """rank: of a subspace; grows with the budget by default (at 32 px and IPC 1, 10, 50: 8, 13, 17; with one side
        2, 4, 7). sharing: images that share one set of mappers, at most; 18 by default."""

        sides: Literal["one", "two"] = "two"
        """Whether rows only, or rows and columns, lie in a subspace."""
        scope: Literal["class", "global"] = "class"
        """Whose images share mappers: a class's own, or all classes'."""
        subspaces: int | None = None
        """In all; a multiple of the number of classes unless scope is global."""
        images: int | None = None
        """In all; classes in turn."""

        @classmethod
        def resolved(cls) -> tuple[str, ...]:
            return ("rank", "subspaces", "images")

        def shapes(self, spec: Spec) -> Shapes:
            (channels, height, width), r = spec.shape, self.rank or 0
            n, g = self.images or 0, self.subspaces or 0
            if self.sides == "one":
                return {"core": ((n, 1, channels, r, width), "factors"), "rows": ((g, channels, r, height), "factors")}
            return {
                "core": ((n, 1, channels, r, r), "factors"),
                "rows": ((g, 1, r, height), "factors"),
                "cols": ((g, 1, r, width), "factors"),
            }

        @classmethod
        def is_many(cls, name: str, role: str) -> bool:
            return name == "core"

        def slots(self, spec: Spec) -> int:
            return self.images or 0

        decoded = slots

        def resolve(self, budget: Budget, spec: Spec) -> Lss.Config:
            """The fewest subspaces under which no more than `sharing` images share one."""
            ipc, side = equivalent(budget, spec, self.storage), min(spec.shape[-2:])
            rule = side / 16 * ipc ** (1 / 3) if self.sides == "one" else side / 4 * ipc**0.2
            config = replace(self, rank=check_rank(self.rank or min(max(1, round(rule)), side), spec))
            sharing, owners = self.sharing or 18, spec.classes if self.scope == "class" else 1
            config = replace(config, subspaces=self.subspaces or owners)
            if config.subspaces is None or config.subspaces % owners:
                raise refuse(
                    "codec.subspaces", self.subspaces, f"a multiple of {owners}, the classes", "codec.scope=global"
                )
            if self.images:
                return config
            while True:
                fitted = grow(config, "images", budget, spec, spec.classes)
                assert fitted.images is not None and fitted.subspaces is not None
                if self.subspaces or fitted.images <= sharing * fitted.subspaces or not fitted.within(budget, spec):
                    return fitted
                config = replace(config, subspaces=fitted.subspaces + owners)

        def build(self, spec: Spec, rng: torch.Generator) -> Lss:
            return Lss(self, spec, {"image": self.images or 0}, self.shapes(spec), rng)

    def subspace_of(self, unit_N: Tensor) -> Tensor:
        """The images of an owner take its subspaces in turn."""
        k, subspaces = self.spec.classes, self.config.subspaces
        turn_N = unit_N // k
        subspace_N = (
            turn_N % subspaces if self.config.scope == "global" else unit_N % k + k * (turn_N % (subspaces // k))
        )
        return torch.as_tensor(subspace_N)

    def address(self, index_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return index_N, self.subspace_of(index_N), torch.zeros_like(index_N)

    def begin(self, take: Take, rng: torch.Generator) -> None:
        """Each subspace holds most of its images' energy; each image is its projection."""
        assert self.rows is not None
        k, r = self.spec.classes, self.config.rank
        real = torch.empty(len(self), *self.spec.shape)
        for c in range(k):
            real[c::k] = take(c, self.units_of(c)).cpu()
        subspace_U = self.subspace_of(torch.arange(len(self)))
        for g in range(self.config.subspaces):
            members = (subspace_U == g).nonzero().flatten()
            if len(members) == 0:
                continue
            x_NCHW = real[members].to(self.core)
            if self.cols is None:
                rows = torch.stack([leading(x_NCHW[:, c].mT.flatten(0, 1), r) for c in range(x_NCHW.shape[1])])
                self.rows[g], core = rows, rows @ x_NCHW
            else:
                self.rows[g, 0] = leading(x_NCHW.mT.flatten(0, 2), r)
                self.cols[g, 0] = leading(x_NCHW.flatten(0, 2), r)
                core = self.rows[g, 0] @ x_NCHW @ self.cols[g, 0].T
            self.core[members, 0] = core
