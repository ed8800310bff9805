"""The machine under the tensors."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from rayd import machine
from rayd.machine import LINKING_S, memory, sweep, use_threads


def test_threads_are_the_plans() -> None:
    before = torch.get_num_threads()
    use_threads(1)
    assert torch.get_num_threads() == 1
    use_threads(before)


def test_what_a_killed_compiler_left_is_swept_away(tmp_path: Path) -> None:
    names = ("empty", "whole", "fresh")
    for name in names:
        (tmp_path / "ab").mkdir(exist_ok=True)
        (tmp_path / "ab" / f"{name}.so").write_bytes(b"" if name != "whole" else b"ELF")
    long_ago = time.time() - 2 * LINKING_S
    for name in ("empty", "whole"):
        os.utime(tmp_path / "ab" / f"{name}.so", (long_ago, long_ago))
    sweep(tmp_path)
    assert sorted(path.stem for path in (tmp_path / "ab").iterdir()) == ["fresh", "whole"]


def test_a_container_has_the_memory_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CONTAINER_LIMITS", (tmp_path / "none",))
    whole = memory(torch.device("cpu"))
    assert whole > 2**28
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text(f"{2**20}\n")
    monkeypatch.setattr(machine, "CONTAINER_LIMITS", (tmp_path / "max",))
    assert memory(torch.device("cpu")) == whole
    monkeypatch.setattr(machine, "CONTAINER_LIMITS", (tmp_path / "max", tmp_path / "limit"))
    assert memory(torch.device("cpu")) == 2**20
