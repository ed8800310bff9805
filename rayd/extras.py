"""What `pip install 'rayd[EXTRA]'` adds, and a refusal that names the extra where a package is missing."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec

from rayd.errors import Refused

EXTRAS: dict[str, tuple[str, ...]] = {
    "jobs": ("hydra", "pyarrow", "tqdm", "webdataset", "yaml"),
    "fleet": ("ray",),
    "report": ("matplotlib",),
    "vision": ("torchvision", "sklearn"),
}
"""Packages by their import names."""


def require(extra: str, what: str, without: Collection[str] = ()) -> None:
    """Refuse `what` where a package of the extra is not installed. `without`: those that it does not use."""
    missing = [name for name in EXTRAS[extra] if name not in without and find_spec(name) is None]
    if missing:
        raise Refused(f"{what}: needs {', '.join(missing)}, not installed; pip install 'rayd[{extra}]'")
