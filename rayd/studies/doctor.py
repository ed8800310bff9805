"""What an operator asks first: is this machine, and every node, able to do what a run asks of it?

`examine` measures one process's surroundings and returns plain values; `judge` turns what was measured, on every node,
into lines, each ok, slow or wrong with what to do. Judging needs no machine, so that every verdict has a test.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F

from rayd.config import Run
from rayd.config.scale import ScaleConfig
from rayd.data.builder import cache_folder
from rayd.data.images import Spec
from rayd.data.load import load as load_data
from rayd.distill.unroll import Inner, cross_entropy
from rayd.errors import Failed, Refused
from rayd.machine import arithmetic, can_compile, device_kind, driver, free_memory, use_threads, versions
from rayd.nets.convnet import NetConfig
from rayd.numbers import size_text
from rayd.seeds import generator
from rayd.store import Store

Facts = Mapping[str, Any]
State = Literal["ok", "slow", "wrong"]
SHARED = Path("/dev/shm")
SHARED_LEAST, DISK_LEAST, DISK_SHORT = 256 * 2**20, 2 * 2**30, 20 * 2**30
LATENCY_SLOW = 0.25
"""Seconds to write, read and delete a small file: a checkpoint takes a few of those."""
NEAR = 1e-4
"""Relative, between a compiled and an eager step in fp32."""
REPEATS = 5


@dataclass(frozen=True)
class Line:
    what: str
    state: State
    finding: str
    do: str = ""
    """The next command to type, where not all is well."""

    def __str__(self) -> str:
        return f"{self.state:<6}{self.what:<16}{self.finding}" + (f"\n{'':<22}-> {self.do}" if self.do else "")


# ---- what is there ---------------------------------------------------------------------------------------------------


def examine(run: Run) -> dict[str, Any]:
    """This process's surroundings, as plain values; nothing is raised but bugs."""
    use_threads(run.scale.threads)
    kind = device_kind(run.scale.gpus)
    there = kind == "cpu" or torch.cuda.is_available()
    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "versions": all_versions(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "driver": driver(),
        "memory": free_memory(kind) if there else 0,
        "compiler": can_compile(kind),
        "shared": shutil.disk_usage(SHARED).total if SHARED.is_dir() else 0,
        "disk": {name: shutil.disk_usage(_there(place)).free for name, place in _places(run).items()},
        "cache": size_text(sum(path.stat().st_size for path in cache_folder().rglob("*") if path.is_file())),
        "out": _latency(run),
        "data": _data(run),
    }
    return facts | {"step": _step(kind) if there else {"error": "no CUDA device"}}


def all_versions() -> dict[str, str]:
    return versions() | {"python": platform.python_version()}


def _places(run: Run) -> dict[str, Path]:
    places = {"cache": cache_folder(), "temporary files": Path(tempfile.gettempdir())}
    local = Store(run.out).local
    return places | ({"out": local} if local is not None else {})


def _there(path: Path) -> Path:
    """The nearest folder above that exists."""
    return next(one for one in (path, *path.parents) if one.exists())


def _latency(run: Run) -> dict[str, Any]:
    """Seconds of a small file, or why there is none."""
    store, name = Store(run.out), f"doctor-{socket.gethostname()}-{os.getpid()}.json"
    try:
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            store.write_json(name, {"doctor": True})
            store.read_json(name)
            store.delete(name)
            times.append(time.perf_counter() - began)
        return {"seconds": median(times)}
    except (Refused, Failed, OSError) as error:
        return {"error": without_home(str(error))[:160]}


def _data(run: Run) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        splits = load_data(run.data)
    except (Refused, Failed, OSError) as error:
        return {"error": without_home(str(error))[:160]}
    finding = {"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)}
    return {"seconds": time.perf_counter() - began, "content": str(splits.train.manifest["content"]), **finding}


def _step(kind: str) -> dict[str, float]:
    """One inner step of trajectory matching, compiled (on a GPU captured too) against eager: gap and seconds of both."""
    device, spec = torch.device(kind), Spec((3, 32, 32), 10)
    net, rng = NetConfig(width=32, depth=1).build(spec), generator(0, "doctor")
    theta, x, lam = net.init(rng), torch.randn(32, *spec.shape, generator=rng), torch.randn(net.size, generator=rng)
    y = F.one_hot(torch.arange(32) % 10, 10).float()
    theta, x, y, lam = (one.to(device) for one in (theta, x, y, lam))
    finding: dict[str, float] = {}
    results = {}
    with arithmetic("fp32"):
        for way, compile in (("eager", False), ("compiled", True)):
            inner = Inner(cross_entropy(net), device, compile=compile)
            began = time.perf_counter()
            results[way] = [one.clone() for one in inner.products(theta, x, y, lam) if one is not None]
            finding[f"{way}_first"] = time.perf_counter() - began
            finding[way] = median(_seconds(inner, theta, x, y, lam) for _ in range(REPEATS))
    gaps = [float((a - b).norm() / b.norm()) for a, b in zip(results["compiled"], results["eager"], strict=True)]
    return finding | {"gap": max(gaps)}


def _seconds(inner: Inner, theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor, lam: torch.Tensor) -> float:
    began = time.perf_counter()
    inner.products(theta, x, y, lam)
    if theta.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def reduced(rank: int, size: int, device: torch.device) -> dict[str, float]:
    """One all-reduce of a million numbers within a process group that stands: seconds, and whether the sum is right."""
    ones = torch.full((2**20,), float(rank + 1), device=device)
    began = time.perf_counter()
    dist.all_reduce(ones)
    right = bool((ones == size * (size + 1) / 2).all())
    return {"seconds": time.perf_counter() - began, "right": right, "size": size}


# ---- what it means ---------------------------------------------------------------------------------------------------


def judge(
    run: Run, mine: Mapping[str, str], nodes: Sequence[Facts], reduce: Facts | None, token: Facts
) -> Iterator[Line]:
    """A line for each question. `mine`: versions where this was asked; `nodes`: of every node; `reduce`: None where
    there is one worker and nothing to sum."""
    yield Line("versions", "ok", ", ".join(f"{name} {version}" for name, version in mine.items()))
    for node in nodes:
        other = [f"{k} {node['versions'].get(k)}, not {v}" for k, v in mine.items() if differs(node, k, v)]
        if other:
            yield Line("versions", "wrong", f"{node['host']}: {'; '.join(other)}", "use one image for all nodes")
    for node in nodes:
        yield from _of_node(run, node)
    contents = {node["data"]["content"] for node in nodes if "content" in node["data"]}
    if len(contents) > 1:
        finding = f"{len(contents)} different contents on {len(nodes)} nodes"
        yield Line("data", "wrong", finding, "prepare them once: python -m jobs.prepare")
    if reduce is not None:
        yield _of_reduce(reduce)
    yield _of_token(run.scale, token)


def differs(node: Facts, name: str, version: str) -> bool:
    """Software must be the same everywhere; devices are each node's own."""
    return name not in ("device", "driver") and node["versions"].get(name) != version


def _of_node(run: Run, node: Facts) -> Iterator[Line]:
    where, gpus = node["host"], node["gpus"]
    named = ", ".join(gpus) or "no GPU"
    free = f"{size_text(node['memory'])} free" + (f", driver {node['driver']}" if node["driver"] else "")
    if run.scale.gpus > 0 and not gpus:
        lacks = f"{where}: scale.gpus={run.scale.gpus:g} and no GPU to be seen"
        yield Line("device", "wrong", lacks, "nvidia-smi; or scale.gpus=0")
    elif gpus and not run.scale.gpus:
        yield Line("device", "ok", f"{where}: CPU, {free}; {named} is not used", "scale.gpus=1 uses it")
    else:
        yield Line("device", "ok", f"{where}: {named}, {free}")
    if not node["compiler"]:
        lacks = "triton: pip install triton" if run.scale.gpus else "a C++ compiler: apt install g++"
        yield Line("compiler", "slow", f"{where}: none, everything runs eagerly", lacks)
    yield _of_step(where, node["step"])
    yield _of_data(where, node)
    yield _of_out(where, run, node["out"])
    short = {name: free for name, free in node["disk"].items() if free < DISK_SHORT}
    state: State = "wrong" if any(free < DISK_LEAST for free in short.values()) else "slow" if short else "ok"
    disks = ", ".join(f"{name} {size_text(free)}" for name, free in node["disk"].items())
    do = "free some, or name another out, RAYD_CACHE or TMPDIR"
    yield Line("free disk", state, f"{where}: {disks}", do if short else "")
    small = run.scale.name != "inline" and node["shared"] < SHARED_LEAST
    do = "mount a larger one (docker: --shm-size, Kubernetes: an emptyDir of medium Memory)"
    yield Line(
        "shared memory", "wrong" if small else "ok", f"{where}: {size_text(node['shared'])}", do if small else ""
    )


def _of_step(where: str, step: Facts) -> Line:
    if "error" in step:
        return Line("step", "wrong", f"{where}: {step['error']}", "nvidia-smi; or scale.gpus=0")
    ratio = step["eager"] / step["compiled"]
    times = (
        f"{1000 * step['compiled']:.1f} ms, {ratio:.1f} times as fast as eager, after {step['compiled_first']:.0f} s"
    )
    finding = f"{where}: {times}; off by {step['gap']:.1g}"
    if not step["gap"] < NEAR:
        return Line("step", "wrong", finding, "method.compiled=false expert.compiled=false, and tell us")
    if ratio > 1:
        return Line("step", "ok", finding)
    return Line("step", "slow", finding, "method.compiled=false may be faster here")


def _of_data(where: str, node: Facts) -> Line:
    data = node["data"]
    if "error" in data:
        return Line("data", "wrong", f"{where}: {data['error']}", "set data.path or RAYD_DATA")
    counts = ", ".join(f"{data[part]:,} {part}" for part in ("train", "val", "test"))
    return Line("data", "ok", f"{where}: {counts} in {data['seconds']:.1f} s; cache {node['cache']}")


def _of_out(where: str, run: Run, out: Facts) -> Line:
    if "error" in out:
        return Line("out", "wrong", f"{where}: not writable: {out['error']}", "name another out=...")
    slow = out["seconds"] > LATENCY_SLOW
    finding = f"{where}: a small file takes {1000 * out['seconds']:.1f} ms"
    return Line(
        "out", "slow" if slow else "ok", finding, "raise method.checkpoint, or name a nearer out" if slow else ""
    )


def _of_reduce(reduce: Facts) -> Line:
    if "error" in reduce:
        return Line(
            "all-reduce", "wrong", str(reduce["error"]), "NCCL_DEBUG=INFO says why; scale.workers=1 does without"
        )
    speed = f"{reduce['size']} workers over {reduce['backend']}: 4 MB in {1000 * reduce['seconds']:.1f} ms"
    return Line(
        "all-reduce", "ok" if reduce["right"] else "wrong", speed, "" if reduce["right"] else "a wrong sum: tell us"
    )


def token_facts(environment: Mapping[str, str], home: Path) -> dict[str, Any]:
    """How Ray is told to authenticate, and whether there is a token to do so; the token itself is not read."""
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    present = path.is_file()
    return {
        "mode": environment.get("RAY_AUTH_MODE", "disabled"),
        "token": "RAY_AUTH_TOKEN" in environment or present,
        "readable": present and bool(path.stat().st_mode & 0o077),
    }


def _of_token(scale: ScaleConfig, token: Facts) -> Line:
    mode, make = token["mode"], "ray get-auth-token --generate, then chmod 600 ~/.ray/auth_token"
    if mode == "token" and not token["token"]:
        return Line("token mode", "wrong", "RAY_AUTH_MODE=token and no token: Ray will not start", make)
    if mode not in ("token", "disabled"):
        finding = f"RAY_AUTH_MODE={mode}: allowed is token | disabled"
        return Line("token mode", "wrong", finding, "export RAY_AUTH_MODE=token")
    if mode == "token" and token["readable"]:
        return Line("token mode", "wrong", "the token file is readable by others", "chmod 600 ~/.ray/auth_token")
    if scale.name == "cluster" and mode != "token":
        finding = "off: whoever reaches the cluster's ports runs code on it"
        return Line("token mode", "wrong", finding, "export RAY_AUTH_MODE=token before ray start and ray job submit")
    return Line("token mode", "ok", "on" if mode == "token" else f"off, and not needed under scale={scale.name}")


def without_home(text: str) -> str:
    """One line, without the name of anybody's home."""
    return " ".join(text.split()).replace(str(Path.home()), "~")
