"""The process that forks jobs, for all tests that kill them or let them meet: starting it costs more than most of these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kills import Forks, forks
from tests.support.kills import words as pipeline


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Forks, Path]]:
    """And the folder that its jobs write to."""
    folder = tmp_path_factory.mktemp("forked")
    with forks(folder, pipeline(folder / "warm")) as process:
        yield process, folder
