"""From a command line to a `Run`: help, composition, one-line refusals, exit codes. The only door for Hydra.

Nothing here or in a job's module imports torch before the words are known to be composable, so `--help` is instant.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import program
from rayd.choices import CONFIGS, GROUPS, PATHS, absolute, check_choice, check_family, follows, options, places
from rayd.errors import require

if TYPE_CHECKING:
    from rayd.config import Run
    from rayd.run.settings import Setting

__all__ = ["CONFIGS", "GROUPS", "Asked", "ask", "command", "compose", "options"]


@dataclass(frozen=True)
class Asked:
    """A command line, understood: the run, the verb's own keys and the words themselves."""

    verb: str
    run: Run
    own: Any
    words: tuple[str, ...]
    published: Published | None = None
    """The row of configs/published.csv that the run's preset compares itself with."""
    settings: tuple[Setting, ...] = ()
    """Keys that followed from the data."""

    def line(self, verb: str | None = None) -> str:
        """The command to type for another verb of the same run."""
        keep = (word for word in self.words if "=" in word and not word.startswith(self._own_keys()))
        return " ".join([program(verb or self.verb), *map(shlex.quote, keep)])

    def _own_keys(self) -> tuple[str, ...]:
        return tuple(f"{one.name}{end}" for one in dataclasses.fields(self.own) for end in "=.")


@dataclass(frozen=True)
class Nothing:
    """A verb without keys of its own."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Which published figures a score is compared with; the dataset is the artifact's own."""

    method: str
    """As configs/published.csv names it."""
    ipc: float | None = None
    """Images per class, as the paper counts them."""
    regime: str | None = None
    """What the figures stand on, as configs/published.csv says; null: any."""


def command(
    verb: str,
    doc: str | None,
    act: Callable[[Asked], int],
    keys: str = "",
    argv: Sequence[str] | None = None,
) -> int:
    """Run one verb: 0 done, 1 it could not go on, 2 what was asked cannot be done.

    `keys` is the dataclass of the verb's own keys as "module:Class": help reads its source, a run imports it.
    """
    words = tuple(sys.argv[1:] if argv is None else argv)

    def verb_of_words() -> int:
        if "--help" in words or "-h" in words:
            from jobs.help import answer

            print(answer(verb, doc or "", keys, [word for word in words if word not in ("--help", "-h")]))
            return 0
        require("jobs", program(verb))
        asked = ask(verb, tuple(word for word in words if word != "--cfg"), keys)
        for setting in asked.settings if verb != "check" else ():
            print(f"rayd: {setting.word}   ({setting.why})", file=sys.stderr)
        if "--cfg" in words:
            print(resolved(asked))
            return 0
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        from rayd.machine import use_threads
        from rayd.store import configure

        use_threads(asked.run.scale.threads)
        configure(asked.run.store)
        return act(asked)

    return exit_code(verb_of_words)


def exit_code(work: Callable[[], int]) -> int:
    """What the work returns, or the code of the error that ends it, whose text is shown."""
    from rayd.errors import Failed, Refused

    try:
        return work()
    except Refused as refusal:
        print(f"rayd: {' '.join(str(refusal).split())}", file=sys.stderr)
        return 2
    except Failed as failure:
        print(f"rayd: {failure}", file=sys.stderr)
        return 1


def ask(verb: str, words: tuple[str, ...], keys: str = "") -> Asked:
    """Compose, then read strictly."""
    mapping, settings = compose(verb, words)
    from rayd.config import Run
    from rayd.schema import fields_of, parse, unknown

    own = keys_class(keys)
    known = [*fields_of(Run), *fields_of(own), "published"]
    for key in mapping:
        if key not in known:
            raise unknown(key, mapping[key], known)
    absolute(mapping)
    mine = {key: mapping.pop(key) for key in list(mapping) if key in fields_of(own)}
    row = mapping.pop("published", None)
    published = None if row is None else parse(Published, row, "published")
    return Asked(verb, Run.from_plain(mapping), parse(own, mine), words, published, settings)


def keys_class(keys: str) -> type[Any]:
    """The dataclass behind "module:Class"."""
    if not keys:
        return Nothing
    module, _, name = keys.partition(":")
    cls: type[Any] = getattr(importlib.import_module(module), name)
    return cls


def compose(verb: str, words: Sequence[str]) -> tuple[dict[str, Any], tuple[Setting, ...]]:
    """Root, groups and overrides joined into plain values, and those of them that followed from the data."""
    from rayd.errors import refuse

    own = next((word.split("=", 1)[1].strip("'\"") for word in words if word.startswith("methods=")), None)
    where = places(own)
    overrides = [_override(word, where) for word in words]
    if follows([word.lstrip("+") for word in words]):
        overrides = ["+preset=own", *overrides]
    overrides += [f"~{group}" for group in GROUPS if any(word.startswith(f"{group}={{") for word in words)]
    if any((place / group).is_dir() for place in where[1:] for group in GROUPS):
        overrides.append(f"hydra.searchpath=['file://{where[1]}']")
    if not (CONFIGS / "run.yaml").is_file():
        raise refuse("configs", CONFIGS, "a folder with run.yaml", "run the jobs from a checkout")
    _check_method(verb, words)
    mapping, _ = _joined(verb, overrides, words)
    method = mapping.get("method")
    objective = method.get("objective") if isinstance(method, dict) else None
    name = objective.get("name") if isinstance(objective, dict) else None
    section = (mapping.get("by_objective") or {}).get(name)
    leaves = list(_leaves("", section)) if section else []
    from rayd.run.settings import follow

    settings = follow(mapping, {word.lstrip("+").partition("=")[0] for word in words}, "+preset=own" in overrides)
    leaves += [f"++{setting.key}={json.dumps(setting.value)}" for setting in settings]
    if leaves:
        mapping, _ = _joined(verb, [*leaves, *overrides], words)
    mapping.pop("by_objective", None)
    return mapping, settings


def _joined(verb: str, overrides: Sequence[str], words: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What Hydra makes of the overrides, as plain values, and the choice of every group."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from rayd.errors import Refused

    try:
        with hydra.initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
            root = verb if (CONFIGS / f"{verb}.yaml").is_file() else "run"
            config = hydra.compose(config_name=root, overrides=list(overrides), return_hydra_config=True)
        choices = {str(group): str(choice) for group, choice in config.hydra.runtime.choices.items()}
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        plain = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[0] if lines else type(error).__name__
        raise Refused(f"{' '.join(words)}: {why}; allowed is KEY=VALUE, values with special signs in quotes") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}, choices


def _leaves(path: str, section: Any) -> Iterator[str]:
    """A section of a preset as overrides that stand before the words of the command line."""
    if isinstance(section, dict) and section:
        for key, value in section.items():
            yield from _leaves(f"{path}.{key}" if path else key, value)
    else:
        yield f"++{path}={json.dumps(section)}"


def _check_method(verb: str, words: Sequence[str]) -> None:
    """Refuse a preset of one method beside another method."""
    pairs = (word.lstrip("+").partition("=") for word in words)
    chosen = {key: value for key, _, value in pairs if key in ("preset", "method")}
    if len(chosen) == 2 and "/" in chosen["preset"]:
        _, choices = _joined(verb, [f"+preset={chosen['preset']}"], words)
        check_family(chosen["preset"], chosen["method"], choices["method"])


def _override(word: str, where: Sequence[Path]) -> str:
    """One word as Hydra reads it: choices are checked here; any other key may be new, since reading is strict."""
    from rayd.errors import refuse

    key, equals, value = word.partition("=")
    if word.startswith("~"):
        return word
    if not equals or not key:
        raise refuse("command line", word, "KEY=VALUE, --help or --cfg", "see --help")
    key = key.lstrip("+")
    if key in GROUPS and not value.startswith(("{", "[")):
        check_choice(key, value, where)
        return f"+{key}={value}" if key == "preset" else f"{key}={value}"
    if key in PATHS and value not in ("", "null", "true", "false") and value[0] not in "'\"":
        value = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"++{key}={value}"


def resolved(asked: Asked) -> str:
    """The run as it will be, every default included, and what each key is for."""
    from omegaconf import OmegaConf

    from jobs.help import commented
    from rayd.schema import to_dict

    parts = [asked.run, asked.own, *([] if asked.published is None else [{"published": asked.published}])]
    plain = {key: value for part in parts for key, value in to_dict(part).items()}
    text = commented(OmegaConf.to_yaml(OmegaConf.create(plain)), parts)
    return f"{text}# fingerprint: {asked.run.fingerprint()}"
