#!/usr/bin/env python3
"""Tell Ray that this node is about to be taken away, so that its work moves before it is gone.

    rayd-drain --watch          poll the cloud's notice (AWS: two minutes ahead) until it comes, then drain
    rayd-drain --seconds 30     drain now: a pod's preStop hook

Only the standard library, and `ray` once there is something to say. Leaves quietly where there is no such notice.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import urllib.error
import urllib.request

METADATA = "http://169.254.169.254"
WARNING = 100
"""Seconds we count on after AWS says two minutes."""


def ask(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def noticed(endpoint: str) -> bool:
    """Whether the instance has been told when it will be stopped."""
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
    given = parser.parse_args(argv)
    while given.watch:
        try:
            if noticed(given.endpoint):
                break
        except OSError:
            sys.stderr.write(f"rayd-drain: no instance metadata at {given.endpoint}: nothing to watch\n")
            return 0
        time.sleep(given.every)
    return drain(given.seconds, "spot notice" if given.watch else "pod stopping")


if __name__ == "__main__":
    sys.exit(main())
