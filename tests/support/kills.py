"""Jobs that are killed at an exact moment: before their n-th change of a file, or after so many seconds.

As a program it is a process that has everything imported and forks a job for each line it reads, since importing takes
longer than a small job. Python itself announces every change of a file (sys.addaudithook), so the job runs as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support.forkserver import Server, serving

ANSWER_S = 120.0
"""Seconds that a job may take."""


WORDS = (
    *("data=digits", "net=convnet_digits", "net.depth=1", "net.width=2", "method=mtt", "budget.ipc=1"),
    *("expert=quick", "expert.experts=4", "expert.epochs=2", "expert.per_shard=2", "method.steps=6"),
    *("method.compiled=false", "method.objective.inner_steps=2", "method.objective.batch=10"),
    *("method.objective.expert_epochs=1", "method.objective.last=1", "method.checkpoint=2"),
    *("recipe.steps=5", "recipe.seeds=2", "scale=inline"),
)
STAGES = ("prepare", "experts", "distill", "evaluate", "report")


def words(out: Path, last: str = STAGES[-1]) -> list[str]:
    """A pipeline of every stage up to `last`."""
    return [*WORDS, f"stages=[{','.join(STAGES[: STAGES.index(last) + 1])}]", f"out={out}"]


@dataclass(frozen=True)
class Change:
    """A file that a job changed."""

    stage: str
    seconds: float
    """Since the job began."""
    event: str
    name: str


@dataclass(frozen=True)
class Ended:
    """How a job ended: its exit code (-9: killed), what it said, and, if it was not killed, the files it changed."""

    code: int
    said: str
    changes: list[Change]
    ends: Mapping[str, float]
    """When each stage of a pipeline ended, in seconds since the job began."""


class Forks(Server):
    """The process that forks jobs."""

    def run(self, words: Sequence[str], before: int | None = None, after: float | None = None) -> Ended:
        """One `jobs.pipeline`, killed before its change number `before` (from 0), or after so many seconds."""
        return self.together([("pipeline", words)], before, after)[0]

    def together(
        self, jobs: Sequence[tuple[str, Sequence[str]]], before: int | None = None, after: float | None = None
    ) -> list[Ended]:
        """Several verbs at once, each with its words."""
        asked = {"jobs": [[verb, list(words)] for verb, words in jobs], "before": before, "after": after}
        return [
            Ended(one["code"], one["said"], [Change(*change) for change in one["changes"]], one["ends"])
            for one in self.ask(asked)
        ]


@contextlib.contextmanager
def forks(folder: Path, warm: Sequence[str]) -> Iterator[Forks]:
    """`folder`: where everything lies that the jobs write. `warm`: the words of a job that is run first, unkilled."""
    with serving("tests.support.kills", folder, *warm) as process:
        yield Forks(process)


# ---- in the process itself -----------------------------------------------------------------------------------------


class Counter:
    """Counts the changes of files below a folder, and kills its process before one of them."""

    def __init__(self, folder: str, before: int | None) -> None:
        self.folder, self.before, self.began = folder, before, time.monotonic()
        self.changes: list[tuple[str, float, str, str]] = []
        self.stage, self.ends = "", dict[str, float]()
        self.lock = threading.Lock()

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in ("os.rename", "os.link"):
            path = arguments[1]
        elif event in ("os.remove", "os.mkdir", "os.rmdir"):
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | Path) or not str(path).startswith(self.folder):
            return
        with self.lock:
            if len(self.changes) == self.before:
                os.kill(os.getpid(), signal.SIGKILL)
            name = str(path)[len(self.folder) :]
            self.changes.append((self.stage, time.monotonic() - self.began, event, name))


def job(verb: str, words: Sequence[str]) -> int:
    from jobs.compose import command

    module = import_module(f"jobs.{verb}")
    return command(verb, None, module.act, getattr(module, "KEYS", ""), words)


def child(folder: str, verb: str, words: Sequence[str], before: int | None, answers: int) -> None:
    """Never returns."""
    from jobs import pipeline

    counter, run_stage = Counter(folder, before), pipeline.run_stage

    def staged(name: str, asked: Any) -> bool:
        counter.stage = name
        try:
            return run_stage(name, asked)
        finally:
            counter.ends[name] = time.monotonic() - counter.began

    pipeline.run_stage = staged
    sys.addaudithook(counter.hear)
    code = 70
    try:
        code = job(verb, words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        with open(answers, "w") as pipe:
            json.dump({"changes": counter.changes, "ends": counter.ends}, pipe)
        os._exit(code)


@dataclass
class Forked:
    """A job under way."""

    pid: int
    answers: int
    said: Path
    killer: threading.Timer

    @classmethod
    def start(cls, folder: str, number: int, verb: str, words: Sequence[str], asked: Mapping[str, Any]) -> Forked:
        read, write = os.pipe()
        said = Path(folder) / f"said-{number}"
        pid = os.fork()
        if pid == 0:
            os.close(read)
            with said.open("w") as file:
                os.dup2(file.fileno(), 2)
                os.dup2(file.fileno(), 1)
            child(folder, verb, words, asked["before"], write)
        os.close(write)
        seconds = ANSWER_S if asked["after"] is None else asked["after"]
        killer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
        killer.start()
        return cls(pid, read, said, killer)

    def end(self) -> dict[str, Any]:
        with open(self.answers) as pipe:
            text = pipe.read()
        self.killer.cancel()
        self.killer.join()  # until it is waited for, the id stays the child's
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        told = json.loads(text) if code >= 0 and text else {"changes": [], "ends": {}}
        return {"code": code, "said": self.said.read_text()[-5000:], **told}


def serve(folder: str) -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        forked = [Forked.start(folder, i, verb, words, asked) for i, (verb, words) in enumerate(asked["jobs"])]
        print(json.dumps([one.end() for one in forked]), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    where, *warm = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        assert job("pipeline", warm) == 0
    serve(where)
