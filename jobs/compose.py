"""From a command line to a `Run`: help, composition, one-line refusals, exit codes. The only door for Hydra.

Nothing here or in a job's module imports torch before the words are known to be composable, so `--help` is instant.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayd.config import Run

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GROUPS = ("preset", "data", "net", "expert", "method", "recipe", "scale")
PATHS = ("out", "buffer", "methods", "data.path", "to", "artifact", "verify")
"""Keys that hold a path or URI: made absolute before anything else sees them, since workers live in other folders."""


@dataclass(frozen=True)
class Asked:
    """A command line, understood: the run, the verb's own keys and the words themselves."""

    verb: str
    run: Run
    own: Any
    words: tuple[str, ...]

    def line(self, verb: str | None = None) -> str:
        """The command to type for another verb of the same run."""
        keep = (word for word in self.words if "=" in word and not word.startswith(self._own_keys()))
        return " ".join([f"python -m jobs.{verb or self.verb}", *map(shlex.quote, keep)])

    def _own_keys(self) -> tuple[str, ...]:
        return tuple(f"{one.name}{end}" for one in dataclasses.fields(self.own) for end in "=.")


@dataclass(frozen=True)
class Nothing:
    """A verb without keys of its own."""


Own = Callable[[], type[Any]]
"""Gives the dataclass of a verb's own keys; asked for only once the words are known to be no cry for help."""


def command(
    verb: str,
    doc: str | None,
    act: Callable[[Asked], int],
    own: Own = lambda: Nothing,
    argv: Sequence[str] | None = None,
) -> int:
    """Run one verb: 0 done, 1 it could not go on, 2 what was asked cannot be done."""
    words = tuple(sys.argv[1:] if argv is None else argv)
    if "--help" in words or "-h" in words:
        print(usage(verb, doc or ""))
        return 0
    from rayd.errors import Failed, Refused

    try:
        asked = ask(verb, tuple(word for word in words if word != "--cfg"), own)
        if "--cfg" in words:
            print(resolved(asked))
            return 0
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        from rayd.machine import use_threads

        use_threads(asked.run.scale.threads)
        return act(asked)
    except Refused as refusal:
        print(f"rayd: {' '.join(str(refusal).split())}", file=sys.stderr)
        return 2
    except Failed as failure:
        print(f"rayd: {failure}", file=sys.stderr)
        return 1


def ask(verb: str, words: tuple[str, ...], own: Own = lambda: Nothing) -> Asked:
    """Compose, then read strictly."""
    mapping = compose(verb, words)
    from rayd.config import Run
    from rayd.schema import fields_of, parse, unknown

    keys = own()
    for key in mapping:
        if key not in {*fields_of(Run), *fields_of(keys)}:
            raise unknown(key, mapping[key], [*fields_of(Run), *fields_of(keys)])
    _make_absolute(mapping)
    mine = {key: mapping.pop(key) for key in list(mapping) if key in fields_of(keys)}
    return Asked(verb, parse(Run, mapping), parse(keys, mine), words)


def compose(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """Root, groups and overrides joined into plain values."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from rayd.errors import Refused, refuse

    own = next((word.split("=", 1)[1].strip("'\"") for word in words if word.startswith("methods=")), None)
    places = [CONFIGS] + ([Path(own).resolve()] if own not in (None, "null") else [])
    overrides = [_override(word, places) for word in words]
    overrides += [f"~{group}" for group in GROUPS if any(word.startswith(f"{group}={{") for word in words)]
    if len(places) > 1 and (places[1] / "method").is_dir():
        overrides.append(f"hydra.searchpath=['file://{places[1]}']")
    if not (CONFIGS / f"{verb}.yaml").is_file():
        raise refuse("configs", CONFIGS, f"a folder with {verb}.yaml", "run the jobs from a checkout")
    try:
        with hydra.initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
            config = hydra.compose(config_name=verb, overrides=overrides)
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[0] if lines else type(error).__name__
        raise Refused(f"{' '.join(words)}: {why}; allowed is KEY=VALUE, values with special signs in quotes") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _override(word: str, places: Sequence[Path]) -> str:
    """One word as Hydra reads it: choices are checked here; any other key may be new, since reading is strict."""
    from rayd.errors import refuse

    key, equals, given = word.partition("=")
    if word.startswith("~"):
        return word
    if not equals or not key:
        raise refuse("command line", word, "KEY=VALUE, --help or --cfg", "see --help")
    key = key.lstrip("+")
    if key in GROUPS and not given.startswith(("{", "[")):
        known = sorted({option for place in places for option in options(key, place)})
        if given not in known:
            from difflib import get_close_matches

            near = get_close_matches(given, known, n=1)
            raise refuse(key, given, " | ".join(known), f"did you mean {near[0]}?" if near else "")
        return f"+{key}={given}" if key == "preset" else f"{key}={given}"
    if key in PATHS and given not in ("", "null") and given[0] not in "'\"":
        given = "'" + given.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"++{key}={given}"


def options(group: str, place: Path = CONFIGS) -> list[str]:
    """The choices of a group: its YAML files, by path; names that start with an underscore are pieces of others."""
    root = place / group
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not Path(name).name.startswith("_"))


def _make_absolute(mapping: dict[str, Any]) -> None:
    from rayd.errors import refuse

    scale = mapping.get("scale")
    for path in PATHS:
        *parents, key = path.split(".")
        holder: Any = mapping
        for parent in parents:
            holder = holder.get(parent) if isinstance(holder, dict) else None
        given = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(given, str) or not given or "://" in given:
            continue
        expanded = os.path.expanduser(given)
        submitted = isinstance(scale, dict) and scale.get("name") == "cluster"
        if submitted and path in ("out", "buffer") and not os.path.isabs(expanded):
            where = "an absolute path every node sees, or a URI"
            raise refuse(path, given, where, f"a submitted job runs in a folder that is thrown away: {path}=/...")
        holder[key] = os.path.abspath(expanded)


def resolved(asked: Asked) -> str:
    """The run as it will be, every default included."""
    from omegaconf import OmegaConf

    from rayd.schema import to_dict

    text: str = OmegaConf.to_yaml(OmegaConf.create({**to_dict(asked.run), **to_dict(asked.own)}))
    return f"{text}# fingerprint: {asked.run.fingerprint()}"


def usage(verb: str, doc: str) -> str:
    """What the verb does, its keys as its YAML says them, and the choices of every group."""
    keys = "".join(_keys(CONFIGS / f"{name}.yaml") for name in (verb, "run"))
    choices = "\n".join(f"  {group}={_short(options(group))}" for group in GROUPS)
    return (
        f"usage: python -m jobs.{verb} [KEY=VALUE ...] [--cfg] [--help]\n\n{doc.strip()}\n\n"
        f"Choices, a file each under configs/:\n{choices}\n\nKeys:\n{keys}\n"
        "Any key of a choice can be set too (method.steps=100, net.width=32, scale.workers=2).\n"
        "--cfg prints the resolved run and stops. Exit codes: 0 done, 1 could not go on, 2 refused."
    )


def _keys(path: Path) -> str:
    lines = path.read_text().splitlines() if path.is_file() else []
    start = next((i + 1 for i, line in enumerate(lines) if line.startswith("  - _self_")), 0)
    return "".join(f"  {line}\n" for line in lines[start:] if line.strip())


def _short(names: list[str], most: int = 14) -> str:
    top = [name for name in names if "/" not in name]
    nested = len(names) - len(top)
    shown = "|".join(top[:most]) + ("|..." if len(top) > most else "")
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    return shown + (f"{'|' if shown else ''}{'|'.join(f'{f}/...' for f in folders)} ({nested})" if nested else "")
