"""A room whose name is a verb of the public face too: `rayd.run(...)` runs, `rayd.run.rows` is a file of the room.

Importing a file of a room binds the room's name in `rayd`, so a function of that name there would be lost.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class Verb(ModuleType):
    """A package that can be called: the function of its name in rayd.api."""

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(import_module("rayd.api"), self.__name__.rpartition(".")[2])
        return function

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.__wrapped__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)


def callable_room(name: str) -> None:
    sys.modules[name].__class__ = Verb
