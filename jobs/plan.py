"""Say what a run will cost before anything is allocated: experts, buffer, ledger, traffic, memory and time.

Counts and bytes are exact. Memory and time come from real steps on the device of the run's scale (`probe=0` leaves them
out). The plan is kept in OUT/plan.json, and where the run has left results already, they stand beside it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from jobs import stage
from jobs.compose import Asked, command

KEYS = "jobs.plan:Keys"


@dataclass(frozen=True)
class Keys:
    probe: float = 20.0
    """Seconds spent measuring on the real device; 0: arithmetic only."""


def act(asked: Asked) -> int:
    from rayd.run.cost import against
    from rayd.store import Store
    from rayd.studies.plan import plan

    run = asked.run
    costs = plan(run, asked.own.probe, stage("plan", run).measure)
    print("\n".join(costs.lines()))
    store = Store(run.out)
    for what, planned, actual in against(costs.json(), store, Store(run.experts_at)):
        print(f"actual    {what}: planned {planned:,.6g}, is {actual:,.6g}")
    if asked.own.probe > 0:
        store.write_json("plan.json", costs.json())
    print(f"next: {asked.line('pipeline')}")
    return 0


if __name__ == "__main__":
    sys.exit(command("plan", __doc__, act, KEYS))
