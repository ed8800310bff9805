"""Where the tests of the fleet play: clusters and jobs as child processes with folders, homes and tokens of their own.

What is started here is stopped here, by process id: the leader of each child's own group first, then whatever still
names the child's folder on its command line.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
CODE = ("rayd", "jobs", "configs")
PATIENCE = 420.0
"""Seconds that any single wait of these tests may take: a machine may be busy, but it may not hang."""


@dataclass
class Ground:
    """A folder with a short name (sockets live in it), a home, a token, and the environment of everything started."""

    folder: Path
    code: Path
    """A copy of what a job needs: a checkout that nobody edits between two submissions."""
    children: list[subprocess.Popen[str]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def made(cls, code: Path | None = None) -> Iterator[Ground]:
        """`code`: that of another ground, which is to be compared with."""
        folder = Path(tempfile.mkdtemp(prefix="rayd"))
        ground = cls(folder, code or folder / "code")
        home, token = folder / "home", folder / "token"
        home.mkdir()
        (folder / "ray").mkdir()
        if code is None:
            copy_code(ground.code)
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        keep = {name: one for name, one in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
        bin_folder = str(Path(sys.executable).parent)
        ground.env = {
            **keep,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "RAY_TMPDIR": str(folder),  # here Ray notes the address of the last cluster: elsewhere tests share it
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_DEDUP_LOGS": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        try:
            yield ground
        finally:
            ground.clear()

    def start(self, words: list[str], **more: Any) -> subprocess.Popen[str]:
        """A child in a group of its own."""
        options = {"cwd": self.code, "env": self.env, "text": True, "start_new_session": True, **more}
        child: subprocess.Popen[str] = subprocess.Popen(words, **options)
        self.children.append(child)
        return child

    def run(self, words: list[str], env: Mapping[str, str] | None = None, timeout: float = PATIENCE) -> tuple[int, str]:
        """A child to its end: its exit code and everything it said."""
        child = self.start(words, env={**self.env, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            said, _ = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            end(child)
            raise
        return child.returncode, said

    def clear(self) -> None:
        for child in reversed(self.children):
            end(child)
        for pid in named(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def copy_code(to: Path) -> None:
    for name in CODE:
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".rayignore", ".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / name, to)


def end(child: subprocess.Popen[str], seconds: float = 5.0) -> None:
    """Asked, then made to: the child and its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def named(folder: Path) -> list[int]:
    """Processes whose command line names our folder: raylets and workers that outlived their leader."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def title(pid: int) -> str:
    """What a process calls itself; empty once it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def descendants(pid: int) -> list[tuple[int, str]]:
    """Processes below `pid`, with the names Ray gives them."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            names[int(entry.name)] = title(int(entry.name))
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    below, fresh = {pid}, {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in below} - below
        below |= fresh
    return [(child, names[child]) for child in sorted(below - {pid})]


class Nodes:
    """A cluster of raylets, of which one can be killed."""

    def __init__(self, ground: Ground, cpus: tuple[int, ...]) -> None:
        self.ground = ground
        words = [sys.executable, str(Path(__file__).with_name("nodes.py")), str(ground.folder), *map(str, cpus)]
        with open(ground.folder / "nodes.log", "w") as log:
            self.child = ground.start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        self.address, *self.ids = self._hear()

    def kill(self, number: int) -> None:
        self._tell(f"kill {number}")

    def add(self, cpus: int) -> None:
        self._tell(f"add {cpus}")

    def notice(self, number: int, seconds: int) -> None:
        """What a cloud's watcher passes on: that node stops in so many seconds."""
        words = ["ray", "drain-node", "--address", self.address, "--node-id", self.ids[number]]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
        code, text = self.ground.run([*words, "--deadline-remaining-seconds", str(seconds)])
        assert code == 0, text

    def _tell(self, line: str) -> None:
        pipe: IO[str] | None = self.child.stdin
        assert pipe is not None
        pipe.write(line + "\n")
        pipe.flush()
        self._hear()

    def _hear(self) -> list[str]:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            if line.startswith("RAYD "):
                return line.split()[1:]
        raise AssertionError("the cluster ended")


class Head:
    """A head node with a job server, started as a user would; token authentication is the ground's."""

    def __init__(self, ground: Ground, cpus: int = 2, more: tuple[str, ...] = ()) -> None:
        """`more`: further words of `ray start`."""
        self.ground = ground
        self.port, gcs, agent, metrics = (free_port() for _ in range(4))
        self.address = f"127.0.0.1:{gcs}"
        self.url = f"http://127.0.0.1:{self.port}"
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        words = [
            "ray", "start", "--head", "--block", f"--port={gcs}", f"--num-cpus={cpus}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.port}", f"--dashboard-agent-listen-port={agent}",
            f"--metrics-export-port={metrics}", f"--temp-dir={ground.folder / 'ray'}", "--disable-usage-stats",
            f"--object-store-memory={100 * 2**20}", *more,
        ]  # fmt: skip
        self.log = ground.folder / "head.log"
        with open(self.log, "a") as log:
            self.child = ground.start(words, stdout=log, stderr=subprocess.STDOUT, cwd=ground.folder)

    def join(self, cpus: int) -> None:
        """A worker node, which comes when it comes."""
        words = ["ray", "start", "--block", f"--address={self.address}", f"--num-cpus={cpus}", "--disable-usage-stats"]
        words += [f"--object-store-memory={100 * 2**20}"]
        with open(self.log, "a") as log:
            self.ground.start(words, stdout=log, stderr=subprocess.STDOUT, cwd=self.ground.folder)

    def submit(
        self, words: list[str], env: Mapping[str, str] | None = None, more: tuple[str, ...] = ()
    ) -> tuple[int, str]:
        """`ray job submit --working-dir . -- WORDS`, to its end."""
        command = ["ray", "job", "submit", "--address", self.url, "--working-dir", ".", *more, "--", *words]
        return self.ground.run(command, env)

    def ready(self) -> bool:
        code, _ = self.ground.run(["ray", "job", "list", "--address", self.url], timeout=120)
        return code == 0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def until(true: Callable[[], bool], seconds: float = PATIENCE, every: float = 0.1) -> None:
    """Wait, but not for ever."""
    stop = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < stop, f"nothing happened for {seconds} s"
        time.sleep(every)
