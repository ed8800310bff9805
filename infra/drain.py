#!/usr/bin/env python3
"""Tell Ray that this node will be taken away, so that its work moves before the node is gone.

    rayd-drain --watch                 poll the cloud's notice (AWS: two minutes ahead) until it comes, then drain
    rayd-drain --seconds 45 --wait     drain now and return when no work is left here, or when the time is over: a pod's
                                       preStop hook, after which the pod's processes are stopped. Ray is told of 10 s less:
                                       a distillation leaves the node at that time, and its workers must not see others die

Only the standard library, and `ray` for the request itself. Ends at once where there is no such notice.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

METADATA = "http://169.254.169.254"
WARNING = 100
"""Seconds we count on after AWS says two minutes."""
LEAVING = 10
"""Seconds that a distillation may take to leave the node, once its time there is over."""
MISSES = 12
"""Questions in a row without an answer after which there is no metadata service here."""
WORK = "ray::"
"""How Ray names a process that works; an idle one is ray::IDLE."""


def ask(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def working(proc: str = "/proc") -> list[str]:
    """Names of Ray's processes on this node that are at work."""
    names = []
    for path in Path(proc).glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            names.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip())
    return [name for name in names if name.startswith(WORK) and not name.startswith(f"{WORK}IDLE")]


def wait(seconds: float, proc: str = "/proc") -> None:
    """Until no work is left, at most so long."""
    stop = time.monotonic() + seconds
    while working(proc) and time.monotonic() < stop:
        time.sleep(0.5)


def noticed(endpoint: str) -> bool:
    """Whether the cloud has said when it stops this instance."""
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    status, token = ask(f"{endpoint}/latest/api/token", "PUT", ttl)
    if status != 200:
        return False
    status, _ = ask(f"{endpoint}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token})
    return status == 200


def drain(seconds: int, why: str) -> int:
    words = ["ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", why]
    words += ["--deadline-remaining-seconds", str(seconds)]
    return subprocess.run(words, timeout=60, check=False).returncode


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watch", action="store_true")
    parser.add_argument("--seconds", type=int, default=WARNING)
    parser.add_argument("--endpoint", default=METADATA)
    parser.add_argument("--every", type=float, default=5.0)
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("--proc", default="/proc")
    options = parser.parse_args(argv)
    misses, answered = 0, False
    while options.watch:
        try:
            if noticed(options.endpoint):
                break
            misses, answered = 0, True
        except OSError as error:
            misses += 1
            if misses >= MISSES and not answered:
                sys.stderr.write(
                    f"rayd-drain: no instance metadata at {options.endpoint} ({error}): nothing to watch\n"
                )
                return 0
        time.sleep(options.every)
    began = time.monotonic()
    left = max(0, options.seconds - LEAVING) if options.wait else options.seconds
    code = drain(left, "spot notice" if options.watch else "pod stopping")
    if options.wait:
        wait(options.seconds - (time.monotonic() - began), options.proc)
    return code


if __name__ == "__main__":
    sys.exit(main())
