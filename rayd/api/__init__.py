"""The verbs of rayd in Python: the same work as the jobs, without Ray or Hydra, on data that may be in memory.

`words` are a preset ("demo", "mtt/cifar10_ipc1") or words as on the command line ("preset=demo method=nsd"). `changes` are
keys of the run: a text chooses a file of a group (method="nsd"), a mapping changes keys (method={"steps": 50}). `data` is a
choice of configs/data, a folder, keys of `data`, Images, or (train, test). `methods` is a folder of code of one's own.


    work       a stage under way, with its bar
    arguments  from the arguments of a verb to a Run
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayd.api.arguments import configured, has_data, run_of
from rayd.api.arguments import contender as contender_of
from rayd.api.work import Phase, distilled, scored, stage, trained
from rayd.api.work import Work as Work
from rayd.errors import Refused, refuse

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.artifact.load import Artifact
    from rayd.config import Run
    from rayd.data import images as data_images
    from rayd.distill.loop import Step
    from rayd.evaluate.table import Table
    from rayd.run.progress import Progress
    from rayd.run.verify import Finding
    from rayd.store import Store
    from rayd.studies.plan import Plan


def run(
    words: str | Sequence[str] = "",
    *,
    out: str | Path,
    data: Any = None,
    methods: str | Path | None = None,
    progress: bool | None = None,
    **changes: Any,
) -> Work[Step, Artifact]:
    """Train the experts that are missing, then distil; yields Steps and returns the artifact. Again, it goes on.

    >>> import rayd
    >>> artifact = rayd.run("smoke", out="runs/smoke", method={"steps": 2}).result()
    >>> artifact.images().shape, artifact.labels[:3].tolist()
    (torch.Size([22, 1, 8, 8]), [0, 1, 2])
    """
    config = configured(words, out, data, methods, changes)
    phases: list[Phase[Any]] = []
    if config.method.reads_experts:
        phases.append(_experts(config, yields=False))
    phases.append(Phase("distill", distilled(config), config.method.steps))
    return Work(config, phases, lambda: load(config.at("artifact"), config.methods), progress)


def experts(
    words: str | Sequence[str] = "",
    *,
    out: str | Path,
    data: Any = None,
    methods: str | Path | None = None,
    progress: bool | None = None,
    **changes: Any,
) -> Work[Progress, str]:
    """Train the experts that are missing; yields their Progress and returns where the buffer is.

    >>> import rayd
    >>> rayd.experts("smoke", out="runs/smoke").result().endswith("runs/smoke/experts")
    True
    """
    config = configured(words, out, data, methods, changes)
    return Work(config, [_experts(config)], lambda: config.experts_at, progress)


def distill(
    words: str | Sequence[str] = "",
    *,
    out: str | Path,
    data: Any = None,
    methods: str | Path | None = None,
    progress: bool | None = None,
    **changes: Any,
) -> Work[Step, Artifact]:
    """Distil, with the experts that are there; yields Steps and returns the artifact.

    >>> import rayd
    >>> len(rayd.distill("smoke method=dm", out="runs/dm", method={"steps": 2}).result())
    10
    """
    config = configured(words, out, data, methods, changes)
    phase = Phase("distill", distilled(config), config.method.steps)
    return Work(config, [phase], lambda: load(config.at("artifact"), config.methods), progress)


def plan(
    words: str | Sequence[str] = "",
    *,
    out: str | Path = "runs/run",
    data: Any = None,
    methods: str | Path | None = None,
    probe: float = 0.0,
    **changes: Any,
) -> Plan:
    """What a run will cost: counts and bytes exactly, time and memory from `probe` seconds of real steps.

    >>> import rayd
    >>> rayd.plan("smoke").experts.experts
    2
    """
    from rayd.studies.plan import plan as planned

    config = configured(words, out, data, methods, changes)
    return planned(config, probe, stage("plan", config).measure)


def evaluate(
    images: Artifact | Tensor | data_images.Images,
    labels: Any = None,
    *,
    data: Any = None,
    recipe: str | Mapping[str, Any] | None = None,
    net: str | Mapping[str, Any] | None = None,
    seeds: int | None = None,
    space: str = "pixels",
    methods: str | Path | None = None,
    gpus: float = 0.0,
) -> dict[str, Any]:
    """Test accuracy of fresh networks trained on a set of any origin: mean, std, n, ci95, accuracies.

    `images`: an artifact, Images, or a tensor of uint8 or of floats from 0 to 1 (space="network": normalised already).
    `labels`: class numbers [N], or probabilities [N, K].

    >>> import rayd, torch
    >>> train, test = (rayd.Images.from_tensors(torch.rand(40, 1, 8, 8), [0, 1] * 20) for _ in range(2))
    >>> score = rayd.evaluate(train, data=(train, test), recipe={"steps": 5}, net={"width": 4, "depth": 1}, seeds=2)
    >>> score["n"], 0 <= score["mean"] <= 1
    (2, True)
    """
    return contender_of(images, labels, data, recipe, net, seeds, space, methods, gpus).score()


def controls(
    images: Artifact | Tensor | data_images.Images,
    labels: Any = None,
    *,
    names: Sequence[str] | None = None,
    data: Any = None,
    recipe: str | Mapping[str, Any] | None = None,
    net: str | Mapping[str, Any] | None = None,
    seeds: int | None = None,
    space: str = "pixels",
    methods: str | Path | None = None,
    gpus: float = 0.0,
) -> Table:
    """A set beside real images under the same recipe. An artifact's table has all controls and is kept in its card; that
    of other sets has random and herded images at equal floats, and the full data.

    >>> import rayd
    >>> artifact = rayd.load("runs/smoke/artifact")
    >>> table = rayd.controls(artifact, names=["random@floats"])
    >>> sorted({row["set"] for row in table.rows} & {"distilled", "random@floats"})
    ['distilled', 'random@floats']
    """
    from rayd.artifact.load import Artifact
    from rayd.evaluate.table import Table

    if not isinstance(images, Artifact) or images.place is None:
        contender = contender_of(images, labels, data, recipe, net, seeds, space, methods, gpus)
        return Table(contender.table(("random@floats", "herding@floats", "full") if names is None else names))
    config = run_of(images, data, methods, recipe, net, seeds, gpus)
    scored(config, images.place.uri, True if names is None else tuple(names))
    newest = load(images.place, config.methods)
    images.card.update(newest.card)
    images.contents.update(newest.contents)
    object.__setattr__(images, "table", newest.table)
    return Table(newest.table or {})


def load(source: str | Path | Store, methods: str | Path | None = None) -> Artifact:
    """An artifact, checked against its card: a folder, a URI or a Store. Nothing is executed, unless `methods` names a
    folder with the code of a codec of one's own.

    >>> import rayd
    >>> print(rayd.load("runs/smoke/artifact"))  # doctest: +ELLIPSIS
    method        lss + mtt
    source        digits...
    """
    from rayd.artifact.load import load

    return load(source, None if methods is None else str(methods))


def export(
    artifact: Artifact | str | Path,
    to: str | Path,
    format: str = "parquet",
    view: str = "png",
    methods: str | Path | None = None,
) -> list[str]:
    """Write an artifact as parquet, webdataset, folder or tensors; the names of the files.

    >>> import rayd
    >>> rayd.export("runs/smoke/artifact", "runs/tensors", "tensors", "exact")
    ['images.pt', 'labels.pt', 'lr.pt', 'README.md']
    """
    from rayd.artifact.export import export
    from rayd.artifact.load import Artifact

    loaded = artifact if isinstance(artifact, Artifact) else load(artifact, methods)
    return export(loaded, str(to), format, view)


def verify(
    artifact: Artifact | str | Path,
    data: Any = None,
    methods: str | Path | None = None,
    scores: bool = True,
    gpus: float = 0.0,
) -> list[Finding]:
    """Whether the claim of an artifact holds: what it and the data allow is computed again. `data`: where they are, if
    not as the card says.

    >>> import rayd
    >>> all(finding.holds for finding in rayd.verify("runs/smoke/artifact", scores=False))
    True
    """
    from rayd.artifact.load import Artifact
    from rayd.run.verify import verify

    folder = None if methods is None else str(methods)
    at = artifact.place if isinstance(artifact, Artifact) else artifact
    if at is None:
        raise refuse("artifact", "in memory", "one that lies in a folder")
    try:
        loaded = artifact if isinstance(artifact, Artifact) else load(at, folder)
    except Refused:
        return list(verify(at, None, scores, folder, gpus))
    config = run_of(loaded, data, folder) if data is not None or has_data(loaded) else None
    return list(verify(at, config, scores, folder, gpus))


def _experts(config: Run, yields: bool = True) -> Phase[Any]:
    from rayd.run.experts import units_of

    return Phase("experts", trained(config), len(units_of(config)), yields)
