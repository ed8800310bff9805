"""Seeds come from the plan: (run seed, what for, unit or step, item), never from time, rank or arrival order."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*path: int | str) -> int:
    """A 63-bit seed named by its path; stable across machines and Python versions."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in path)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*path: int | str) -> torch.Generator:
    """A CPU generator for one purpose. Draws happen on the CPU so that every device sees the same ones."""
    return torch.Generator().manual_seed(seed_of(*path))
