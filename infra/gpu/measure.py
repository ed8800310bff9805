"""What to run first on a machine with one GPU and no Ray: five parts, one JSON each, at most ten minutes a part.

    python infra/gpu/measure.py OUT            the GPU's sizes; RAYD_DATA names the folder with CIFAR-10
    python infra/gpu/measure.py OUT cpu        small sizes on a CPU, to see it move: its figures mean nothing

doctor        what jobs.doctor says
correctness   fp32 on the device against the CPU; captured and compiled against eager; stacked against single; the same twice
benches       experts a second and their memory, planned and measured, stacked and single; the unrolled gradient's bench
mtt           MTT on CIFAR-10 at 1 image per class, from its experts to its controls
nsd           NSD likewise, on the experts of mtt

A part is done once OUT/PART.json is there. Killed at any time, the same command goes on: mtt and nsd from their last
shard or checkpoint. A part that takes longer than its ten minutes is left as it stands, the others follow, and the next
call goes on with it. Exit code: 0 all parts done, 1 otherwise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600.0
"""Seconds of a part."""
NEAR = 1e-4
"""Relative: sums in another order, in fp32."""
DRIFT = 0.02
"""Relative, after an epoch of steps: differences grow."""
Rows = list[dict[str, Any]]

SIZES: dict[str, dict[str, Any]] = {
    "gpu": {
        "gpus": 1, "width": 128, "depth": 3, "side": 32, "images": 5120, "batch": 256, "experts": 5, "inner": 20,
        "bench": "full", "common": ("scale.gpus=1", "scale.threads=4", "transform=normalise"),
        "experts_of": ("expert.experts=10", "expert.epochs=20"),
        "mtt": ("preset=mtt/cifar10_ipc1", "method.steps=500", "method.objective.last=2", "recipe=cpu"),
        "nsd": ("preset=nsd/cifar10_ipc1", "method.steps=300", "method.objective.last=10", "recipe=cpu"),
    },
    "cpu": {
        "gpus": 0, "width": 8, "depth": 2, "side": 16, "images": 64, "batch": 16, "experts": 2, "inner": 3,
        "bench": "", "common": ("scale.gpus=0", "preset=smoke"), "experts_of": (),
        "mtt": ("method=mtt",), "nsd": ("method=nsd",),
    },
}  # fmt: skip


def main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help") or (words[1:] or ["gpu"])[0] not in SIZES:
        print((__doc__ or "").strip())
        return 2
    out, size = Path(words[0]).resolve(), SIZES[(words[1:] or ["gpu"])[0]]
    out.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        if not (out / f"{name}.json").exists():
            print(f"gpu: {name}", flush=True)
            run(name, part, out, size)
    left = [name for name in PARTS if not (out / f"{name}.json").exists()]
    print(f"gpu: left: {', '.join(left)}; the same command goes on" if left else f"gpu: all parts are in {out}")
    return 1 if left else 0


def run(name: str, part: Callable[[Path, dict[str, Any]], Rows], out: Path, size: dict[str, Any]) -> None:
    """A part, kept whole or not at all."""
    began = time.monotonic()
    try:
        rows = part(out, size)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        print(f"gpu: {name} is not done: {error}", flush=True)
        return
    sys.path.insert(0, str(ROOT))
    from rayd.machine import device_kind, versions

    made = versions(device_kind(size["gpus"]))
    found = {"part": name, "seconds": time.monotonic() - began, "versions": made, "rows": rows}
    with tempfile.NamedTemporaryFile("w", dir=out, prefix=f".{name}-", delete=False) as file:
        json.dump(found, file, indent=1)
    os.replace(file.name, out / f"{name}.json")


def child(*words: str, code: tuple[int, ...] = (0,)) -> str:
    """What a command prints; its process ends with the part's time."""
    command = [sys.executable, *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, timeout=LIMIT)
    if done.returncode not in code:
        raise subprocess.CalledProcessError(done.returncode, command)
    return done.stdout


# ---- parts -----------------------------------------------------------------------------------------------------------


def doctor(out: Path, size: dict[str, Any]) -> Rows:
    page = child("-m", "jobs.doctor", *size["common"], *size["mtt"], f"out={out}/mtt", code=(0, 1))
    print(page)
    return [{"line": line.strip()} for line in page.splitlines()]


def correctness(out: Path, size: dict[str, Any]) -> Rows:
    return list(json.loads(child(__file__, "--child", "correctness", json.dumps(size)).splitlines()[-1]))


def benches(out: Path, size: dict[str, Any]) -> Rows:
    rows: Rows = []
    for engine in ("stacked", "single"):
        rows += json.loads(
            child(__file__, "--child", "experts", json.dumps({**size, "engine": engine})).splitlines()[-1]
        )
    if size["bench"]:
        bench = child("-m", "jobs.bench", "unroll", f"size={size['bench']}")
        rows += [json.loads(line) for line in bench.splitlines() if line.startswith("{")]
    return rows


def mtt(out: Path, size: dict[str, Any]) -> Rows:
    return pipeline(out / "mtt", *size["common"], *size["mtt"], *size["experts_of"])


def nsd(out: Path, size: dict[str, Any]) -> Rows:
    return pipeline(out / "nsd", *size["common"], *size["nsd"], *size["experts_of"], f"buffer={out}/mtt/experts")


def pipeline(out: Path, *words: str) -> Rows:
    command = ("jobs.pipeline", *words, f"out={out}")
    child("-m", *command)
    timing = json.loads((out / "artifact" / "timing.json").read_text())
    table = json.loads(next((out / "artifact").glob("controls*.json")).read_text())
    rows = [{key: row[key] for key in ("set", "net", "mean", "std", "n")} for row in table["rows"]]
    spent = {key: value for key, value in timing.items() if isinstance(value, int | float)}
    return [{"command": f"python -m {' '.join(command)}".replace(str(out), "OUT"), **spent}, *rows]


PARTS: dict[str, Callable[[Path, dict[str, Any]], Rows]] = {
    "doctor": doctor, "correctness": correctness, "benches": benches, "mtt": mtt, "nsd": nsd,
}  # fmt: skip


# ---- in a process of its own -----------------------------------------------------------------------------------------


def case(size: dict[str, Any]) -> tuple[Any, ...]:
    """A network, random images and how they are seen."""
    import torch

    from rayd.data.images import Images, Spec
    from rayd.data.transform import Transform
    from rayd.nets.convnet import NetConfig
    from rayd.seeds import generator

    spec, rng = Spec((3, size["side"], size["side"]), 10), generator(0, "gpu")
    pixels = torch.randint(256, (size["images"], *spec.shape), generator=rng, dtype=torch.uint8)
    labels = torch.arange(size["images"]) % 10
    images = Images(pixels, labels, tuple(map(str, range(10))), "random", {"content": ""})
    net = NetConfig(width=size["width"], depth=size["depth"]).build(spec)
    return net, images, Transform("normalise", torch.full((3,), 0.5), torch.full((3,), 0.25))


def compare(size: dict[str, Any]) -> Rows:
    import torch
    import torch.nn.functional as F

    from rayd.data.augment import AugmentConfig
    from rayd.distill.unroll import Inner, cross_entropy, unroll
    from rayd.experts.config import ExpertConfig
    from rayd.experts.train import train
    from rayd.machine import arithmetic, device_for
    from rayd.seeds import generator

    device = device_for(size["gpus"])
    net, images, transform = case(size)
    rng = generator(0, "gpu", "unroll")
    theta, end = net.init(rng), net.init(rng)
    pixels, targets = torch.randn(20, *net.spec.shape, generator=rng), F.one_hot(torch.arange(20) % 10, 10).float()
    augment = AugmentConfig().build()
    draws = [augment.draw(rng, 20, pixels.shape) for _ in range(size["inner"])]

    def outer(where: torch.device, compile: bool) -> list[torch.Tensor]:
        """The gradient of a whole unroll, twice: the second replays what the first captured."""
        inner = Inner(cross_entropy(net), where, compile=compile)
        x, y = pixels.to(where).requires_grad_(), targets.to(where)
        lr = torch.tensor(0.02, device=where, requires_grad=True)
        for _ in range(2):
            last = unroll(inner, theta.to(where), lambda i: (augment(x, draws[i]), y), size["inner"], lr, [x])
            found = torch.autograd.grad((last - end.to(where)).square().sum(), [x, lr])
        return [one.cpu() for one in found]

    def experts(engine: str, micro: int = 0) -> list[torch.Tensor]:
        config = ExpertConfig(batch=size["batch"], precision="fp32", engine=engine, micro=micro)  # type: ignore[arg-type]
        seeds = tuple(range(size["experts"]))
        return [one.theta_P for one in train(config, net, transform, images, seeds, epochs=1, device=device)]

    def row(what: str, ours: list[torch.Tensor], theirs: list[torch.Tensor], near: float) -> dict[str, Any]:
        gap = max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))
        return {"what": what, "gap": gap, "near": near, "holds": gap <= near}

    with arithmetic("fp32"):
        eager = outer(device, False)
        stacked = experts("stacked")
        order = sorted(range(len(stacked)), key=lambda i: i % size["experts"])  # as the single engine yields them
        return [
            row(
                "an unroll on the device against the CPU",
                eager,
                outer(torch.device("cpu"), False),
                NEAR * size["inner"],
            ),
            row("captured and compiled against eager", outer(device, True), eager, NEAR * size["inner"]),
            row("stacked experts against single ones", [stacked[i] for i in order], experts("single"), DRIFT),
            row("micro-batches against whole ones", experts("stacked", size["batch"] // 4), stacked, DRIFT),
            row("the same experts twice", experts("stacked"), stacked, 0.0),
        ]


def pace(size: dict[str, Any]) -> Rows:
    """Images a second of one unit, after a first epoch, and its memory beside the plan's."""
    from rayd.experts.config import ExpertConfig
    from rayd.experts.memory import unit_bytes
    from rayd.experts.train import train
    from rayd.machine import arithmetic, device_for, peak_memory

    device = device_for(size["gpus"])
    net, images, transform = case(size)
    config = ExpertConfig(batch=size["batch"], engine=size["engine"])
    seeds, times = tuple(range(size["experts"])), [time.perf_counter()]
    with arithmetic(config.precision):
        for snapshot in train(config, net, transform, images, seeds, epochs=3, device=device):
            if snapshot.expert == 0:
                times.append(time.perf_counter())
    per_epoch = len(images) * (size["experts"] if size["engine"] == "stacked" else 1)
    planned = unit_bytes(config, net, size["experts"], config.batch, images.pixels_NCHW.numel())
    return [{
        "bench": "experts", "case": f"{size['engine']} x{size['experts']} {config.precision}", "unit": "images/s",
        "value": per_epoch / (times[-1] - times[-2]), "peak": peak_memory(device.type),
        "planned": planned if size["engine"] == "stacked" else None,
    }]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps({"correctness": compare, "experts": pace}[sys.argv[2]](json.loads(sys.argv[3]))))
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
