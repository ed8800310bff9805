"""The machine under the tensors."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rayd import machine
from rayd.errors import Refused
from rayd.machine import (
    LINKING_S,
    arithmetic,
    device_for,
    device_kind,
    memory,
    out_of_memory,
    sweep,
    use_threads,
    versions,
)
from tests.support.pretend import pretend_gpu

__all__ = ["pretend_gpu"]


def test_threads_are_the_plans() -> None:
    before = torch.get_num_threads()
    use_threads(1)
    assert torch.get_num_threads() == 1
    use_threads(before)


def test_a_process_may_compile_a_line_of_code_for_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten runs of different shapes: torch alone allows eight, and then ends the run."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda fn, **keys: real(fn, backend="eager", **keys))

    def double(x: Tensor) -> Tensor:
        return 2 * x

    for size in range(1, 11):
        fn = machine.compiled(double, torch.device("cpu"))
        assert torch.equal(fn(torch.ones(size)), 2 * torch.ones(size))


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


# ---- device and arithmetic -------------------------------------------------------------------------------------------


def flags() -> list[bool]:
    cudnn = torch.backends.cudnn
    return [torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark]


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("bf16", False), ("tf32", True)])
def test_fp32_is_fp32_and_what_was_set_comes_back(precision: str, tf32: bool) -> None:
    before = flags()
    with pytest.raises(ZeroDivisionError), arithmetic(precision):
        assert flags() == [tf32, tf32, True, False]
        raise ZeroDivisionError
    assert flags() == before


def test_the_scale_decides_the_device() -> None:
    assert device_for(0).type == "cpu"
    assert device_kind(0.5) == "cuda", "wherever this is asked"
    if not torch.cuda.is_available():
        with pytest.raises(Refused, match=r"scale\.gpus=1"):
            device_for(1)


def test_no_gpu_is_used_that_was_not_asked_for(pretend_gpu: torch.device) -> None:
    assert device_for(0).type == "cpu"
    assert device_for(1).type == "cuda"


def test_the_versions_name_the_device(pretend_gpu: torch.device) -> None:
    assert {"rayd", "torch", "ray", "device", "driver"} <= set(versions("cuda"))
    assert versions("cuda")["device"] == "pretend" and versions("cpu")["device"].startswith("cpu")


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(error: BaseException, ran_out: bool) -> None:
    assert bool(out_of_memory(error)) == ran_out
