"""Train expert networks and stream their trajectories into sharded buffers, one after another or by Ray actors.

Committed shards are skipped, lost ones made again: kill it, submit it again, the bytes are the same.
`verify=true` checks every row of a buffer instead.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from jobs.compose import Asked, command

KEYS = "jobs.experts:Keys"


@dataclass(frozen=True)
class Keys:
    verify: bool = False
    """Check every row of an existing buffer instead of building one."""


def act(asked: Asked) -> int:
    at = asked.run.experts_at
    if asked.own.verify:
        return check(at)
    count = built(asked)
    print(f"rayd: buffer in {at}: {count} experts made" if count else f"rayd: {at} is already done")
    print(f"next: {asked.line('distill')}")
    return 0


def check(at: str) -> int:
    from rayd.errors import Failed
    from rayd.experts.buffer import verify

    faults = verify(at)
    if faults:
        raise Failed("\n".join(faults))
    print(f"rayd: {at}: every row agrees with its checksum")
    return 0


def built(asked: Asked) -> int:
    """Build the experts that are missing; how many there were."""
    from jobs.console import Line
    from rayd.api.work import trained

    line, progress = Line(), None
    for progress in trained(asked.run):
        line.show(f"experts  {progress.line()}")
    if progress is None or not progress.done:
        return 0
    line.show(f"experts  {progress.line()}", last=True)
    return int(progress.experts)


if __name__ == "__main__":
    sys.exit(command("experts", __doc__, act, KEYS))
