"""The two ways a run ends early, each with a message a person can act on."""

from __future__ import annotations


class Refused(ValueError):
    """What was asked cannot be done: nothing was started, nothing is lost (jobs: one line, exit code 2)."""


class Failed(RuntimeError):
    """What was started cannot go on: says what happened, what is safe and what to do (jobs: exit code 1)."""


def refuse(field: str, value: object, allowed: str, do: str = "") -> Refused:
    """The one form of a refusal: field, value, what is allowed, what to do next."""
    return Refused(f"{field}={value!s}: allowed is {allowed}" + (f"; {do}" if do else ""))
