"""The verbs of rayd in Python: the same work as the jobs, without Ray or Hydra, on data that may be in memory.

`words` are a preset ("demo", "mtt/cifar10_ipc1") or words as on the command line ("preset=demo method=nsd"). `changes` are
keys of the run: a text chooses a file of a group (method="nsd"), a mapping changes keys (method={"steps": 50}). `data` is a
choice of configs/data, a folder, keys of `data`, Images, or (train, test). `methods` is a folder of code of one's own.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rayd.choices import Changes, absolute, changed, changes_of, choice, compose, options
from rayd.errors import refuse
from rayd.extras import require

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.artifact.load import Artifact
    from rayd.config import Run
    from rayd.data import images as data_images
    from rayd.data.images import Splits
    from rayd.distill.loop import Step
    from rayd.evaluate.table import Table
    from rayd.run.contender import Contender
    from rayd.run.progress import Progress
    from rayd.run.verify import Finding
    from rayd.store import Store
    from rayd.studies.plan import Plan

S = TypeVar("S")
R = TypeVar("R")
INLINE = {
    "experts": "rayd.run.experts",
    "distill": "rayd.run.distill",
    "plan": "rayd.studies.plan",
    "prepare": "rayd.data.prepare",
}


def stage(verb: str, run: Run) -> Any:
    """The module that does a verb: in this process under scale=inline, else on Ray, under the same names."""
    if run.scale.name != "inline":
        require("fleet", f"scale={run.scale.name}")
    return import_module(INLINE[verb] if run.scale.name == "inline" else f"rayd.fleet.{verb}")


# ---- work under way ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase(Generic[S]):
    """A part of the work, with a bar of its own."""

    what: str
    items: Iterable[S]
    total: int
    yields: bool = True
    """Whether whoever iterates sees its items."""


class Work(Generic[S, R]):
    """A stage under way: iterate over it for its steps, or ask for its `result()`, which takes the steps that are left.

    >>> import rayd
    >>> work = rayd.run("smoke", out="runs/smoke", method={"steps": 2})
    >>> [step.number for step in work], work.result().classes[:2]
    ([1, 2], ('0', '1'))
    """

    def __init__(self, config: Run, phases: Sequence[Phase[S]], result: Any, progress: bool | None = None) -> None:
        self.config = config
        self._result, self._progress = result, progress
        self._items = self._run(phases)

    def __iter__(self) -> Generator[S, None, R]:
        yield from self._items
        return self.result()

    def result(self) -> R:
        """What the work comes to: an artifact, or where the experts are."""
        for _ in self._items:
            pass
        value: R = self._result()
        return value

    def _run(self, phases: Sequence[Phase[S]]) -> Iterator[S]:
        for phase in phases:
            with bar(phase.what, phase.total, self._progress) as shown:
                for item in phase.items:
                    shown.update(_count(item) - shown.n)
                    loss = getattr(item, "value", None)
                    shown.set_postfix_str(f"loss {loss:.4f}" if loss is not None else "", refresh=False)
                    if phase.yields:
                        yield item


def _count(item: Any) -> int:
    """Steps, or experts, done so far."""
    return int(item.number if hasattr(item, "number") else item.skipped + item.done)


def bar(what: str, total: int, progress: bool | None) -> Any:
    """A bar of tqdm: in a notebook its own, in a terminal a line. None: shown where somebody looks."""
    from tqdm.auto import tqdm

    seen = sys.stderr.isatty() or "ipykernel" in sys.modules if progress is None else progress
    return tqdm(total=total, desc=what, disable=not seen)


def trained(run: Run) -> Iterator[Progress]:
    """The experts of a run that are missing."""
    from rayd.run.experts import ExpertPlan

    yield from stage("experts", run).build(ExpertPlan.open(run))


def distilled(run: Run) -> Iterator[Step]:
    """The steps of a distillation that are left; none where its artifact is there."""
    from rayd.run.distill import finished
    from rayd.store import Store

    if not finished(run, Store(run.out)):
        yield from stage("distill", run).distill(run)


def scored(run: Run, at: str, controls: bool | Sequence[str] = True) -> bool:
    """Score an artifact beside its controls; false where its card holds this recipe's table already."""
    from rayd.run.cost import keep
    from rayd.run.evaluate import is_scored, rows_asked, score
    from rayd.store import Store

    rows = rows_asked(controls, run.own.controls)
    if is_scored(run, at, rows):
        return False
    if run.scale.name == "inline":
        score(run, at, rows)
    else:
        require("fleet", f"scale={run.scale.name}")
        score(run, at, rows, import_module("rayd.fleet.tasks").run_tasks)
    keep(run, Store(at))
    return True


# ---- the verbs -----------------------------------------------------------------------------------------------------


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
    (torch.Size([80, 1, 8, 8]), [0, 1, 2])
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
    return _contender(images, labels, data, recipe, net, seeds, space, methods, gpus).score()


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
        contender = _contender(images, labels, data, recipe, net, seeds, space, methods, gpus)
        return Table(contender.table(("random@floats", "herding@floats", "full") if names is None else names))
    config = _run_of(images, data, methods, recipe, net, seeds, gpus)
    scored(config, images.place.uri, True if names is None else tuple(names))
    newest = load(images.place, config.methods)
    images.card.update(newest.card)
    images.contents.update(newest.contents)
    return Table(images.place.read_json("controls.json"))


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
    at = artifact.place if isinstance(artifact, Artifact) and artifact.place is not None else artifact
    if isinstance(at, Artifact):
        raise refuse("artifact", "in memory", "one that lies in a folder")
    config = None if data is None else _run_of(load(at, folder), data, folder)
    return list(verify(at, config, scores, folder, gpus))


# ---- from arguments to a run ---------------------------------------------------------------------------------------


def configured(
    words: str | Sequence[str], out: str | Path, data: Any, methods: str | Path | None, changes: Mapping[str, Any]
) -> Run:
    """The Run that the arguments describe."""
    require("jobs", "rayd.run")
    from rayd.config import Run

    asked = changes_of(words)
    folder = str(methods) if methods is not None else next((value for key, value in asked if key == "methods"), None)
    asked += [*_data(data, str(out)), *((key.replace("__", "."), value) for key, value in changes.items())]
    asked += [("out", str(out)), *([("methods", folder)] if folder is not None else [])]
    plain = compose(asked, folder)
    plain.pop("published", None)
    absolute(plain)
    return Run.from_plain(plain)


def _experts(config: Run, yields: bool = True) -> Phase[Any]:
    from rayd.run.experts import units_of

    return Phase("experts", trained(config), len(units_of(config)), yields)


def _data(data: Any, out: str) -> Changes:
    """The keys of `data`; images in memory are written to OUT/data first."""
    from rayd.data.images import Images
    from rayd.data.own import written
    from rayd.store import within

    if data is None:
        return []
    if isinstance(data, Mapping):
        return [*([("~data", None)] if "name" in data else []), ("data", dict(data))]
    if isinstance(data, str | Path):
        if str(data) in options("data"):
            return [("data", str(data))]
        if "://" not in str(data) and not Path(data).expanduser().is_dir():
            raise refuse("data", data, f"a folder that is there, or {' | '.join(options('data'))}")
        return [("data", "folder"), ("data.path", str(data))]
    pair = data if isinstance(data, tuple | list) else (data,)
    if not 1 <= len(pair) <= 2 or not all(isinstance(one, Images) for one in pair):
        raise refuse("data", type(data).__name__, "a name, a folder, keys of `data`, Images, or (train, test)")
    at = within(out, "data")
    written(at, *pair)
    return [("data", "prepared"), ("data.path", at)]


def _contender(
    images: Any,
    labels: Any,
    data: Any,
    recipe: str | Mapping[str, Any] | None,
    net: str | Mapping[str, Any] | None,
    seeds: int | None,
    space: str,
    methods: str | Path | None,
    gpus: float,
) -> Contender:
    """A set with the data, the recipe and the network that it is scored with: an artifact's own where none are named."""
    from rayd import plugins
    from rayd.artifact.load import Artifact
    from rayd.evaluate.recipe import RecipeConfig
    from rayd.nets.convnet import NetConfig
    from rayd.run.contender import Contender

    splits = _splits(data, images)
    own = plugins.load(None if methods is None else str(methods))
    base = _run_of(images, None, methods) if isinstance(images, Artifact) and images.card["config"] else None
    with plugins.using(own):
        config = (
            _part(RecipeConfig, "recipe", recipe, own.folder) if recipe is not None or base is None else base.recipe
        )
        network = _part(NetConfig, "net", net, own.folder) if net is not None or base is None else base.net
    config = config if seeds is None else replace(config, seeds=seeds)
    return Contender.of(images, labels, splits, config, network, space, gpus, own.controls)


def _part(cls: type[S], group: str, value: str | Mapping[str, Any] | None, folder: str | None) -> S:
    """A recipe or a network: a choice of configs, or keys; the defaults where nothing is said."""
    from rayd.schema import parse

    return parse(cls, choice(group, value, folder) if isinstance(value, str) else value or {}, group)


def _splits(data: Any, images: Any) -> Splits:
    """Training and test images to score a set with; an artifact's own where none are named."""
    from rayd.artifact.load import Artifact
    from rayd.data.config import DataConfig
    from rayd.data.images import Images
    from rayd.data.load import load
    from rayd.data.own import splits_of
    from rayd.schema import parse

    if isinstance(data, Images):
        return splits_of(data)
    if isinstance(data, tuple | list):
        return splits_of(*data)
    if data is None and isinstance(images, Artifact):
        return load(_run_of(images, None, None).data)
    if data is None:
        raise refuse("data", None, "the dataset whose test images decide", "give data=...")
    if isinstance(data, Mapping):
        return load(parse(DataConfig, data, "data"))
    known = str(data) in options("data")
    return load(
        parse(DataConfig, choice("data", str(data)) if known else {"name": "folder", "path": str(data)}, "data")
    )


def _run_of(
    artifact: Artifact,
    data: Any,
    methods: str | Path | None,
    recipe: str | Mapping[str, Any] | None = None,
    net: str | Mapping[str, Any] | None = None,
    seeds: int | None = None,
    gpus: float = 0.0,
) -> Run:
    """The run that an artifact's card records, where it lies now, with other data, recipe or networks."""
    from rayd import plugins
    from rayd.config import run_of_card
    from rayd.evaluate.recipe import RecipeConfig
    from rayd.nets.convnet import NetConfig
    from rayd.store import Store, within

    config, place = artifact.card["config"], artifact.place
    if not config or place is None:
        raise refuse(
            "artifact", "without a config", "one that a run left", "evaluate(images, labels, data=...) scores it"
        )
    out = place.uri.rstrip("/").removesuffix("/artifact")
    folder = str(methods) if methods is not None else artifact.own.folder
    changes = _data(data, out)
    if not changes and config["data"]["name"] == "prepared" and Store(out).exists("data/manifest.json"):
        changes = [("data.path", within(out, "data"))]
    plain = changed({**config, "out": out, "methods": folder}, changes)
    if isinstance(plain["data"], str):
        plain["data"] = choice("data", plain["data"])
    run = run_of_card(plain)
    with plugins.using(run.own):
        if recipe is not None:
            run = replace(run, recipe=_part(RecipeConfig, "recipe", recipe, folder))
        if net is not None:
            run = replace(run, recipe=replace(run.recipe, nets=(_part(NetConfig, "net", net, folder),)))
    if seeds is not None:
        run = replace(run, recipe=replace(run.recipe, seeds=seeds))
    return replace(run, scale=replace(run.scale, name="inline", gpus=gpus, workers=1))
