"""A child process that has everything imported and forks what a test asks for: one JSON line a question, one an answer."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENDS_S = 120


class Server:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, question: dict[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextlib.contextmanager
def serving(module: str, folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m module folder words`; `folder`: where everything lies that it writes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAYD_CACHE": str(folder / "cache")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(folder), *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=ENDS_S)
