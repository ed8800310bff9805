"""What tests share: one small local Ray for those that ask, quiet threads, the folder of real images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves workers on a busy machine
# For the object store on the loopback; Ray's workers must know them from the start.
os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")

import pytest
import torch

from tests.support.runs import PLAIN

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test that draws without a generator of its own draws the same numbers on every machine, alone or in company."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small run that names no folder has the test's own: scores of controls are shared by the runs of a folder."""
    monkeypatch.setitem(PLAIN, "out", str(tmp_path / "run"))


@pytest.fixture(scope="session", autouse=True)
def cache_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images are kept for the session, in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYD_CACHE", str(tmp_path_factory.mktemp("rayd-cache")))
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, for a test that looks into it."""
    monkeypatch.setenv("RAYD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of our own in this process: 4 logical CPUs, no dashboard; shut down at the end."""
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 2**20,
        )
    yield
    if started:
        ray.shutdown()


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder RAYD_DATA names: real CIFAR-10 and ImageNette."""
    folder = os.environ.get("RAYD_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RAYD_DATA is not set: no real images here")
    return Path(folder)


@pytest.fixture
def busy_cluster(ray_local: None) -> Iterator[None]:
    """Other work holds every core of the small local Ray."""
    import ray

    @ray.remote(num_cpus=4)
    class Other:
        def ready(self) -> None:
            pass

    other = Other.remote()  # type: ignore[attr-defined]
    ray.get(other.ready.remote())
    yield
    ray.kill(other)
