"""From the arguments of a verb to a Run, images, recipes and networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rayd.choices import Changes, absolute, changes_of, choice, compose, options
from rayd.errors import refuse, require

if TYPE_CHECKING:
    from rayd.artifact.load import Artifact
    from rayd.config import Run
    from rayd.data.images import Splits
    from rayd.run.contender import Contender
    from rayd.store import Store

T = TypeVar("T")


def configured(
    words: str | Sequence[str], out: str | Path, data: Any, methods: str | Path | None, changes: Mapping[str, Any]
) -> Run:
    """The Run that the arguments describe."""
    require("jobs", "rayd.run", without=("hydra",))
    from rayd.config import Run
    from rayd.run.settings import follow

    asked = changes_of(words)
    folder = str(methods) if methods is not None else next((value for key, value in asked if key == "methods"), None)
    asked += [*_data(data, str(out)), *((key.replace("__", "."), value) for key, value in changes.items())]
    asked += [("out", str(out)), *([("methods", folder)] if folder is not None else [])]
    plain = compose(asked, folder, follow)
    plain.pop("published", None)
    absolute(plain)
    return Run.from_plain(plain)


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


def contender(
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
    from rayd.artifact.load import Artifact
    from rayd.choices import plugins
    from rayd.evaluate.recipe import RecipeConfig
    from rayd.nets.convnet import NetConfig
    from rayd.run.contender import Contender

    if methods is None and isinstance(images, Artifact):
        methods = images.own.folder
    own = plugins.load(None if methods is None else str(methods))
    with plugins.using(own):
        splits = _splits(data, images, methods)
    base = run_of(images, None, methods) if isinstance(images, Artifact) and images.card["config"] else None
    with plugins.using(own):
        config = (
            _part(RecipeConfig, "recipe", recipe, own.folder) if recipe is not None or base is None else base.recipe
        )
        network = _part(NetConfig, "net", net, own.folder) if net is not None or base is None else base.net
    config = config if seeds is None else replace(config, seeds=seeds)
    return Contender.of(images, labels, splits, config, network, space, gpus, own.controls)


def folder_of(place: Store) -> str:
    """The folder of the run that left an artifact there."""
    return place.uri.rstrip("/").removesuffix("/artifact")


def has_data(artifact: Artifact) -> bool:
    """Whether the images of the run lie beside its artifact, where `data=` of images in memory put them."""
    from rayd.store import Store

    config, place = artifact.card["config"], artifact.place
    if place is None or not config or config["data"]["name"] != "prepared":
        return False
    return Store(folder_of(place)).exists("data/manifest.json")


def _recorded(plain: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The data that a card records, with changes; another choice brings its own keys."""
    data = dict(plain)
    for key, value in changes:
        if key == "~data":
            data = {}
        elif key != "data":
            data[key.removeprefix("data.")] = value
        elif isinstance(value, Mapping):
            data |= value
        elif value != data["name"]:
            data = choice("data", value)
    return data


def _part(cls: type[T], group: str, value: str | Mapping[str, Any] | None, folder: str | None) -> T:
    """A recipe or a network: a choice of configs, or keys; the defaults where nothing is said."""
    from rayd.schema import parse

    return parse(cls, choice(group, value, folder) if isinstance(value, str) else value or {}, group)


def _splits(data: Any, images: Any, methods: str | Path | None) -> Splits:
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
        return load(run_of(images, None, methods).data)
    if data is None:
        raise refuse("data", None, "the dataset whose test images decide", "give data=...")
    if isinstance(data, Mapping):
        return load(parse(DataConfig, data, "data"))
    known = str(data) in options("data")
    return load(
        parse(DataConfig, choice("data", str(data)) if known else {"name": "folder", "path": str(data)}, "data")
    )


def run_of(
    artifact: Artifact,
    data: Any,
    methods: str | Path | None,
    recipe: str | Mapping[str, Any] | None = None,
    net: str | Mapping[str, Any] | None = None,
    seeds: int | None = None,
    gpus: float = 0.0,
) -> Run:
    """The run that an artifact's card records, where it lies now, with other data, recipe or networks."""
    from rayd.choices import plugins
    from rayd.config import run_of_card
    from rayd.evaluate.recipe import RecipeConfig
    from rayd.nets.convnet import NetConfig
    from rayd.store import within

    config, place = artifact.card["config"], artifact.place
    if not config or place is None:
        raise refuse(
            "artifact", "without a config", "one that a run left", "evaluate(images, labels, data=...) scores it"
        )
    out = folder_of(place)
    folder = str(methods) if methods is not None else artifact.own.folder
    changes = _data(data, out)
    if not changes and has_data(artifact):
        changes = [("data.path", within(out, "data"))]
    run = run_of_card({**config, "out": out, "methods": folder, "data": _recorded(config["data"], changes)})
    with plugins.using(run.own):
        if recipe is not None:
            run = replace(run, recipe=_part(RecipeConfig, "recipe", recipe, folder))
        if net is not None:
            run = replace(run, recipe=replace(run.recipe, nets=(_part(NetConfig, "net", net, folder),)))
    if seeds is not None:
        run = replace(run, recipe=replace(run.recipe, seeds=seeds))
    return replace(run, scale=replace(run.scale, name="inline", gpus=gpus, workers=1))
