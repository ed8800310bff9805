"""The keys of jobs.submit, and the runtime environment that they ask for. Imports no Ray: the help reads it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rayd.errors import refuse
from rayd.machine import __version__

IN_IMAGE = "/srv/rayd"
"""Where the image of infra/Dockerfile has the code."""
OF_THE_CLUSTER = ("torch", "ray", "rayd")
"""What every node has before a job comes, and the code itself."""
JOBS = "jobs"
"""The extra that every job needs."""


@dataclass(frozen=True)
class Submission:
    """How a job reaches the cluster, and what its processes run in."""

    address: str | None = None
    """Job server; null: what RAY_API_SERVER_ADDRESS says, or a cluster on this machine."""
    env: Literal["none", "uv", "pip", "image"] = "none"
    """none: the nodes as they are; uv, pip: our dependencies at the tested versions, installed on each node beside Ray and
    torch; image: submit.image, which podman starts on each node, with the code that is in it."""
    image: str | None = None
    """Container image of infra/Dockerfile, for submit.env=image."""
    extras: tuple[str, ...] = ("report",)
    """Extras of pyproject.toml that uv and pip install too: digits, vision, report, search."""
    vars: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the job, as in {RAYD_DATA: /mnt/data}."""
    cpus: float = 1.0
    """CPU cores reserved for the driver: above 0 it runs on a worker node where the head offers none."""
    id: str | None = None
    """Name of the job; null: Ray makes one."""
    follow: str | None = None
    """Name of a job that runs already: nothing is submitted, its log is followed."""
    wait: bool = True
    """Whether to follow the log to the end; false: return once the job is submitted."""

    def __post_init__(self) -> None:
        if (self.env == "image") != bool(self.image):
            raise refuse(
                "submit.image",
                self.image,
                "an image for submit.env=image, and for no other",
                "infra/Dockerfile builds one",
            )
        if self.cpus < 0:
            raise refuse("submit.cpus", self.cpus, "zero or more")

    def command(self, entrypoint: str) -> str:
        """The entry point, in the folder of the code."""
        return f"cd {IN_IMAGE} && {entrypoint}" if self.env == "image" else entrypoint

    def environment(self, root: Path | None) -> dict[str, Any]:
        """The runtime environment as Ray reads it. `root`: the folder that is uploaded; none where rayd is installed."""
        variables: dict[str, Any] = {"env_vars": dict(self.vars)} if self.vars else {}
        if self.env == "image":  # which Ray does not combine with a working_dir
            return {"image_uri": self.image, **variables}
        packages: dict[str, Any] = {} if self.env == "none" else {self.env: requirements(self.extras, root)}
        return {**({"working_dir": str(root)} if root else {}), **packages, **variables}


@dataclass(frozen=True)
class Keys:
    submit: Submission = field(default_factory=Submission)
    """See submit.address and the others."""


def requirements(extras: Sequence[str], root: Path | None) -> list[str]:
    """The dependencies of pyproject.toml and of its extras, but for what a cluster has, at the tested versions."""
    if root is None:
        return [f"rayd[{','.join((JOBS, *extras))}]=={__version__}"]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    for extra in extras:
        if extra not in optional:
            raise refuse("submit.extras", extra, " | ".join(optional))
    wanted = [*project["dependencies"], *(one for extra in (JOBS, *extras) for one in optional[extra])]
    pins = [line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line]
    tested = {name: version for name, version in pins}
    names = {re.split(r"[\[<>=~! ]", one)[0]: one for one in wanted}
    kept = {name: one for name, one in names.items() if name not in OF_THE_CLUSTER}
    return [f"{name}=={tested[name]}" if name in tested else one for name, one in kept.items()]
