"""The run configuration: frozen dataclasses joined to a `Run`, checked as a whole, named by a fingerprint.

Each part's options live in the part's own class (`DataConfig`, `NetConfig`, a codec's `Config` ...). This module joins
them and refuses sentences that mean nothing, by what the parts declare and never by their names.

scale: where the work runs, and the bound of every wait there
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from rayd.choices import plugins
from rayd.config.scale import ScaleConfig
from rayd.data.config import DataConfig, deciding_keys
from rayd.distill.budget import Budget
from rayd.distill.contract import OptimiserConfig
from rayd.distill.guard import GuardConfig
from rayd.errors import refuse
from rayd.evaluate.recipe import RecipeConfig
from rayd.experts.config import ExpertConfig
from rayd.methods import CODECS, OBJECTIVES, TERMS
from rayd.nets.convnet import NetConfig
from rayd.schema import (
    ADDED,
    DERIVED,
    at,
    fields,
    fingerprint,
    parse,
    positive,
    read,
    to_dict,
    value,
    written,
)
from rayd.store import StoreConfig, beside, within

__all__ = ["GuardConfig", "MethodConfig", "OptimiserConfig", "Run", "ScaleConfig", "fingerprint", "parse", "to_dict"]


FROM_EXPERTS = frozenset({"segment", "pool", "teacher"})
"""Needs that an expert buffer meets: rows to match, a pool of networks, teachers for labels and starts."""


@dataclass(frozen=True)
class Words:
    """The names a sentence may use: ours, and those of a folder of one's own."""

    codecs: Mapping[str, type[Any]]
    objectives: Mapping[str, type[Any]]
    terms: Mapping[str, type[Any]]


def words(own: plugins.Plugins = plugins.NONE) -> Words:
    """Our dicts, joined by those of a folder of one's own."""
    ours: dict[str, Mapping[str, Any]] = {"codecs": CODECS, "objectives": OBJECTIVES, "terms": TERMS}
    return Words(**{kind: plugins.joined(kind, names, own) for kind, names in ours.items()})


def _part(known: Mapping[str, type[Any]], mapping: Any, where: str) -> tuple[str, Any]:
    """One word of the sentence: its name and its Config."""
    if not isinstance(mapping, Mapping) or "name" not in mapping:
        raise refuse(where, mapping, f"a mapping with a name, one of {', '.join(known)}")
    name = mapping["name"]
    if name not in known:
        near = get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]}?" if near else "a name of one's own needs its folder: methods=FOLDER"
        raise refuse(f"{where}.name", name, " | ".join(known), hint)
    cls = known[name].Config
    rest = {key: option for key, option in mapping.items() if key != "name"}
    return name, parse(cls, rest, where)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A method is a sentence: codec + objective + terms, and how it is optimised."""

    codec: Any
    """What a synthetic set is stored as: its name and its own keys."""
    objective: Any
    """What it is distilled by: its name and its own keys."""
    terms: tuple[Any, ...] = ()
    """What is added to the objective, each with a weight."""
    steps: int = 1000
    """Of the distillation."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """What moves the codec's parameters."""
    ema: float = 0.0
    """Decay of the averaged codec that is validated and kept; 0: none."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """When a bad step is skipped, rolled back, or ends the run."""
    through: int | None = field(default=0, metadata=ADDED)
    """Step from which the set is distilled through its storage: networks see the numbers that the file would hold, and
    gradients pass straight to those behind them; null: numbers are rounded once, after the last step."""
    checkpoint: int = 50
    """Steps between checkpoints of the whole state."""
    validate: int = 0
    """Steps between validations on the training split; 0: at the end only."""
    select: Literal["last", "best_val"] = "last"
    """Which step is kept: the last, or the best by validation, where `data.val` is large enough to tell (5,000 images)."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Arithmetic of the networks; parameters and losses stay in fp32."""
    compiled: bool = True
    """Whether steps are compiled by torch.compile."""
    part_names: tuple[str, ...] = field(default=(), metadata=DERIVED)
    """Names of codec, objective and terms as the sentence said them."""
    needs: frozenset[str] = field(default=frozenset(), metadata=DERIVED)
    """What the parts declare that they need: segment, nets, pool, real, teacher."""

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint"):
            positive(f"method.{name}", getattr(self, name))
        if self.through is not None and self.through < 0:
            raise refuse("method.through", self.through, "a step from 0, or null to round after the last step")
        if self.validate < 0:
            raise refuse("method.validate", self.validate, "a number of steps, or 0 for the end only")
        if not 0.0 <= self.ema < 1.0:
            raise refuse("method.ema", self.ema, "a decay from 0 (none) to below 1")

    @property
    def needs_teacher(self) -> bool:
        """Whether trained experts give the codec its first labels or images."""
        return "teacher" in getattr(self.codec, "needs", ())

    @property
    def reads_experts(self) -> bool:
        """Whether an expert buffer has to be there first: rows to match, a pool of networks, a teacher for the start."""
        return not self.needs.isdisjoint(FROM_EXPERTS)

    @property
    def sentence(self) -> str:
        return " + ".join(self.part_names)

    @classmethod
    def from_plain(cls, mapping: Mapping[str, Any], where: str = "method") -> MethodConfig:
        known, rest = words(plugins.known()), dict(mapping)
        if "codec" not in rest or "objective" not in rest:
            missing = "codec" if "codec" not in rest else "objective"
            raise refuse(at(where, missing), "(missing)", "a mapping with a name", "a sentence needs both")
        codec_name, codec = _part(known.codecs, rest.pop("codec"), f"{where}.codec")
        objective_name, objective = _part(known.objectives, rest.pop("objective"), f"{where}.objective")
        listed = rest.pop("terms", None) or ()
        if not isinstance(listed, list | tuple):
            raise refuse(f"{where}.terms", listed, "a list of mappings with a name")
        terms = [_part(known.terms, term, f"{where}.terms[{i}]") for i, term in enumerate(listed)]
        part_names = (codec_name, objective_name, *(name for name, _ in terms))
        needs = frozenset(getattr(objective, "needs", known.objectives[objective_name].needs)).union(
            getattr(codec, "needs", ()), *(getattr(known.terms[t], "needs", ()) for t in part_names[2:])
        )
        check_sentence(known, part_names, codec, objective)
        parts = {"codec": codec, "objective": objective, "terms": tuple(config for _, config in terms)}
        derived = {"part_names": part_names, "needs": needs}
        return read(cls, {**rest, **parts}, where, derived)

    def to_plain(self) -> dict[str, Any]:
        plain = {name: to_dict(getattr(self, name)) for name in written(self)}
        codec, objective, *terms = self.part_names
        plain["codec"] = {"name": codec, **plain["codec"]}
        plain["objective"] = {"name": objective, **plain["objective"]}
        plain["terms"] = [{"name": name, **term} for name, term in zip(terms, plain["terms"], strict=True)]
        return plain


def check_sentence(
    known: Words, part_names: tuple[str, ...], codec_config: Any = None, objective_config: Any = None
) -> None:
    """Refuse what cannot mean anything, by what the parts declare."""
    objective = known.objectives[part_names[1]]
    gives = getattr(objective_config, "gives", objective.gives)
    multiclass = getattr(objective_config, "multiclass", objective.multiclass)
    learns = getattr(codec_config, "labels", "hard") == "soft"
    if learns and not objective.uses_labels:
        raise refuse(
            "method",
            " + ".join(part_names),
            "an objective that uses labels where the codec learns them",
            f"{part_names[1]} gives labels no gradient: use hard labels or a trajectory objective",
        )
    for name in part_names[2:]:
        term = known.terms[name]
        lacking = sorted(term.asks - gives)
        if lacking:
            raise refuse(
                "method.terms",
                name,
                f"a term fed by what {part_names[1]} gives ({', '.join(sorted(gives))})",
                f"{name} asks {', '.join(lacking)}: choose another objective or drop the term",
            )
        if term.multiclass and not multiclass:
            raise refuse(
                "method.terms",
                name,
                "a term that makes sense on items of one class",
                f"{name} contrasts classes, and {part_names[1]} sees one class an item",
            )


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a job needs to know; what is here and not `place` decides the result."""

    data: DataConfig
    """Which images, and how they are split."""
    net: NetConfig
    """The network that is matched and, unless the recipe says otherwise, trained."""
    expert: ExpertConfig
    """How experts are trained, and how many."""
    method: MethodConfig
    """Codec, objective and terms, and how they are optimised."""
    recipe: RecipeConfig
    """How a synthetic set is scored."""
    transform: Literal["normalise", "zca", "none"] = "normalise"
    """The network space: what experts, synthetic images and evaluation share."""
    budget: Budget = field(default_factory=lambda: Budget(ipc=1.0))
    """What a synthetic set may hold."""
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    """Where the work runs."""
    store: StoreConfig = field(default_factory=StoreConfig)
    """How long storage is waited for."""
    seed: int = 0
    """Every draw of the run comes from it."""
    out: str = "runs/run"
    """Run directory or URI: every stage finds the earlier ones there."""
    buffer: str | None = None
    """Expert buffer; null: `experts` under `out`."""
    scores: str | None = None
    """Folder of the scores of controls, shared by runs on the same data; null: `scores` beside the buffer."""
    methods: str | None = None
    """Folder of code of one's own: methods, networks, formats, augmentations, controls."""
    own: plugins.Plugins = field(default=plugins.NONE, metadata=DERIVED, compare=False, repr=False)
    """What is in it."""

    def __post_init__(self) -> None:
        if self.transform == "zca" and getattr(self.method.codec, "clamp", False):
            raise refuse("method.codec.clamp", True, "false under transform=zca", "whitened pixels have no bounds")

    @classmethod
    def from_plain(cls, mapping: Mapping[str, Any], where: str = "") -> Run:
        rest = dict(mapping)
        own = plugins.load(value(str | None, rest.get("methods"), "methods"))
        with plugins.using(own):
            return read(cls, rest, where, {"own": own})

    @property
    def experts_at(self) -> str:
        """Where the expert buffer is."""
        return self.buffer if self.buffer is not None else self.at("experts")

    @property
    def scores_at(self) -> str:
        """Where scores of controls are kept."""
        return self.scores if self.scores is not None else beside(self.experts_at, "scores")

    def at(self, name: str) -> str:
        """What lies at `name` in the run's folder."""
        return within(self.out, name)

    def identity(self) -> dict[str, Any]:
        """What decides the result of a distillation."""
        return config_identity(to_dict(self))

    def fingerprint(self) -> str:
        return fingerprint(self.identity())


def config_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config, of this version or as a card records it, without its place, evaluation and paths."""
    elsewhere = ("out", "buffer", "scores", "methods", "recipe", "scale", "store")
    plain = {key: part for key, part in config.items() if key not in elsewhere}
    for part, places in {"data": ("path",), "expert": ("micro", "memory")}.items():
        plain[part] = {key: value for key, value in plain[part].items() if key not in places}
    return {**plain, "data": deciding_keys(plain["data"]), "threads": config["scale"]["threads"]}


def _raw_rate(objective: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an objective, with the rate of the step size itself; Adam's has no counterpart, the default stands."""
    plain = dict(objective)
    if "step_optimiser" not in plain:
        return plain
    lr = value(float, plain.pop("lr_step", 0.01), "method.objective.lr_step")
    rate = lr * value(float, plain.get("step_size", 0.01), "method.objective.step_size") ** 2
    return plain | ({"lr_step": rate} if plain.pop("step_optimiser") == "sgd" else {})


def run_of_card(config: Mapping[str, Any]) -> Run:
    """The run that an artifact's card records. Earlier ones hold `method.name`, a rate for the logarithm of the step size
    under `step_optimiser`, and experts of whole batches."""
    parts = fields(config, {"method": Mapping[str, Any], "expert": Mapping[str, Any]}, "card.config")
    method = fields(parts["method"], {"objective": Mapping[str, Any]}, "card.config.method")
    method = {key: part for key, part in method.items() if key != "name"} | {
        "objective": _raw_rate(method["objective"])
    }
    return parse(Run, {**config, "method": method, "expert": {"last_batch": "drop"} | config["expert"]})
