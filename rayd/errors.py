"""The two ways a run ends early, each with a message a person can act on."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec


class Refused(ValueError):
    """The request cannot be carried out. Nothing was started and nothing is lost (jobs: one line, exit code 2)."""


class Failed(RuntimeError):
    """Started work cannot go on: says what happened, what is safe and what to do (jobs: exit code 1)."""


class Transient(Failed):
    """Storage did not recover within its patience. Never recorded as final: the same command may succeed later."""


class OutOfMemory(Failed):
    """Memory ran out; whoever can ask for less of it may try once more."""


LONGEST = 500
"""Letters of a value that a message repeats."""


def refuse(field: str, value: object, allowed: str, do: str = "") -> Refused:
    """A refusal in its one form: field, value, what is allowed, what to do next."""
    text = str(value)
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return Refused(f"{field}={text}: allowed is {allowed}" + (f"; {do}" if do else ""))


EXTRAS: dict[str, tuple[str, ...]] = {
    "jobs": ("hydra", "pyarrow", "tqdm", "webdataset", "yaml"),
    "fleet": ("ray",),
    "report": ("matplotlib",),
}
"""What `pip install 'rayd[EXTRA]'` adds, by import names."""


def require(extra: str, what: str, without: Collection[str] = ()) -> None:
    """Refuse `what` where a package of the extra is not installed. `without`: those that it does not use."""
    missing = [name for name in EXTRAS[extra] if name not in without and find_spec(name) is None]
    if missing:
        raise Refused(f"{what}: needs {', '.join(missing)}, not installed; pip install 'rayd[{extra}]'")
