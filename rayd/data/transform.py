"""From pixels to network space and back. What a consumer of an artifact needs too, so it is stored beside it.

ZCA follows the field's pipelines (kornia's ZCAWhitening with eps 0.1 on pixels in [0, 1]): U diag(1/sqrt(s + eps)) U^T
on the centred images, U s U^T being the covariance of the training set.

Shapes: N images, C channels, D = C*H*W.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rayd.data.builder import build, cache_folder, save_array
from rayd.data.images import Images, Spec
from rayd.errors import refuse

Kind = Literal["normalise", "zca", "none"]
EPS = 0.1
CHUNK = 4000


@dataclass(frozen=True, eq=False)
class Transform:
    """normalise: (x - mean_C) / std_C. zca: (x - mean_D) matrix_DD. none: pixels in [0, 1]."""

    kind: Kind
    mean_C: Tensor
    std_C: Tensor
    matrix_DD: Tensor | None = None
    inverse_DD: Tensor | None = None
    source: str = ""
    """zca: content hash of the images it was fitted on, which names it: eigensolvers differ in their last bits."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise refuse("transform", self.kind, " | ".join(get_args(Kind)))
        if self.kind == "zca" and (self.matrix_DD is None or self.inverse_DD is None):
            raise ValueError("zca needs its matrix and the inverse")

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """uint8 pixels, or floats in [0, 1], to float32 network space (other float types stay)."""
        x = images_NCHW.float().div_(255) if images_NCHW.dtype == torch.uint8 else images_NCHW
        if self.kind == "normalise":
            return (x - self.mean_C[:, None, None].to(x.dtype)) / self.std_C[:, None, None].to(x.dtype)
        if self.matrix_DD is None:
            return x
        flat_ND = x.flatten(1) - self.mean_C.to(x.dtype)
        return (flat_ND @ self.matrix_DD.to(x.dtype)).view_as(x)

    def inverse(self, x_NCHW: Tensor) -> Tensor:
        """Back to pixels, 0 to 1 for legal images, unclamped."""
        if self.kind == "normalise":
            return x_NCHW * self.std_C[:, None, None].to(x_NCHW.dtype) + self.mean_C[:, None, None].to(x_NCHW.dtype)
        if self.inverse_DD is None:
            return x_NCHW
        flat_ND = x_NCHW.flatten(1) @ self.inverse_DD.to(x_NCHW.dtype)
        return (flat_ND + self.mean_C.to(x_NCHW.dtype)).view_as(x_NCHW)

    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """Per channel, where pixels 0 and 1 lie in network space; none where a box is no box any more (zca)."""
        if self.kind == "zca":
            return None
        return (0 - self.mean_C) / self.std_C, (1 - self.mean_C) / self.std_C

    @property
    def unit(self) -> float:
        """RMS of the training pixels about their mean: 1 by construction where normalised, sqrt(mean of s / (s + eps))
        over the eigenvalues s where whitened, which the matrix tells; pixels in [0, 1] keep their own unit, 1."""
        if self.matrix_DD is None:
            return 1.0
        return math.sqrt(
            max(0.0, 1 - EPS * float(self.matrix_DD.square().sum(dtype=torch.float64)) / len(self.matrix_DD))
        )

    @property
    def device(self) -> torch.device:
        return self.mean_C.device

    def to(self, device: torch.device | str) -> Transform:
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self._fields().items()}
        return replace(self, **moved)

    def _fields(self) -> dict[str, Tensor]:
        fields = {
            "mean_C": self.mean_C,
            "std_C": self.std_C,
            "matrix_DD": self.matrix_DD,
            "inverse_DD": self.inverse_DD,
        }
        return {name: tensor for name, tensor in fields.items() if tensor is not None}

    def tensors(self) -> dict[str, Tensor]:
        """Everything `restore` needs beyond `meta`; these are what a ledger lists beside the budget."""
        return {name.split("_")[0]: tensor for name, tensor in self._fields().items()}

    def meta(self) -> dict[str, Any]:
        return {"kind": self.kind, "source": self.source, "eps": EPS if self.kind == "zca" else None}

    @classmethod
    def restore(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor], spec: Spec) -> Transform:
        """Out of `meta` and `tensors`, as they were stored, for images of this spec."""
        channels, floats = spec.shape[0], spec.floats
        shapes: dict[str, tuple[int, ...]] = {"mean": (channels,), "std": (channels,)}
        if meta["kind"] == "zca":
            shapes |= {"mean": (floats,), "matrix": (floats, floats), "inverse": (floats, floats)}
        for name, shape in shapes.items():
            there = tuple(tensors[name].shape) if name in tensors else "missing"
            if there != shape or tensors[name].dtype != torch.float32:
                raise refuse(f"transform.{name}", there, f"{shape} numbers of fp32 for images of {spec.shape}")
        return cls(
            meta["kind"],
            tensors["mean"],
            tensors["std"],
            tensors.get("matrix"),
            tensors.get("inverse"),
            str(meta.get("source", "")),
        )

    def fingerprint(self) -> str:
        numbers = [] if self.kind == "zca" else [[round(float(v), 6) for v in t] for t in (self.mean_C, self.std_C)]
        return hashlib.sha256(json.dumps([self.meta(), numbers], sort_keys=True).encode()).hexdigest()

    @classmethod
    def fit(cls, images: Images, kind: Kind) -> Transform:
        """Fitted on these (training) images; a ZCA comes out of the cache if it was ever fitted on the same ones."""
        channels = images.spec.shape[0]
        if kind == "normalise":
            return cls(kind, *images.statistics())
        if kind == "none":
            return cls(kind, torch.zeros(channels), torch.ones(channels))
        source = str(images.manifest["content"])
        path = cache_folder() / f"zca-{hashlib.sha256(f'{source} {EPS}'.encode()).hexdigest()[:32]}.npy"
        build(path, Path.exists, lambda draft: save_array(draft, _whiten(images)))
        both = torch.from_numpy(np.load(path, mmap_mode="c"))
        d = both.shape[1]
        return cls(kind, both[-1], torch.ones(channels), both[:d], both[d:-1], source)


def _whiten(images: Images) -> np.ndarray[Any, Any]:
    """Matrix, inverse and mean, one under the other: [2D + 1, D]. The training set is read twice, in chunks."""
    n, d = len(images), images.spec.floats
    if n < 2:
        raise refuse("transform", "zca", "a training set of at least two images")
    total_D = torch.zeros(d, dtype=torch.int64)
    for start in range(0, n, CHUNK):
        total_D += images.pixels_NCHW[start : start + CHUNK].flatten(1).sum(0, dtype=torch.int64)
    mean_D = total_D.double() / (255 * n)
    cov_DD = torch.zeros(d, d, dtype=torch.float64)
    for start in range(0, n, CHUNK):
        centred_ND = images.pixels_NCHW[start : start + CHUNK].flatten(1).float() / 255 - mean_D.float()
        cov_DD += (centred_ND.T @ centred_ND).double()
    values_D, vectors_DD = torch.linalg.eigh(cov_DD / (n - 1))
    root_D = (values_D.clamp(min=0) + EPS).sqrt()
    matrix_DD, inverse_DD = (vectors_DD * root_D.reciprocal()) @ vectors_DD.T, (vectors_DD * root_D) @ vectors_DD.T
    return torch.cat([matrix_DD, inverse_DD, mean_D[None]]).float().numpy()
