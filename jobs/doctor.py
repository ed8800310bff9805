"""Ask this machine, or every node of a cluster, whether it can do what a run asks: the first command to run anywhere.

Versions, devices and their memory, compiler, a compiled step against an eager one, the all-reduce between workers, data
and cache, `out`, disk, shared memory, token mode: each line is ok, slow or wrong with what to do. Exit code 1 where one is
wrong. Nothing is kept; put what it prints into an issue.
"""

from __future__ import annotations

import sys

from jobs.compose import Asked, command


def act(asked: Asked) -> int:
    import os
    from pathlib import Path

    from rayd.studies.doctor import Facts, all_versions, examine, judge, token_facts, without_home

    run, reduce, nodes = asked.run, None, list[Facts]()
    print(f"rayd doctor: {without_home(asked.line())}", flush=True)
    token = token_facts(os.environ, Path.home())
    if run.scale.name == "inline":
        nodes = [examine(run)]
    else:
        from rayd.fleet.doctor import between_workers, on_every_node

        nodes = on_every_node(run)
        reduce = between_workers(run)
    wrong = 0
    for line in judge(run, all_versions(), nodes, reduce, token):
        wrong += line.state == "wrong"
        print(line, flush=True)
    print(f"rayd doctor: {wrong} wrong" if wrong else "rayd doctor: nothing is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(command("doctor", __doc__, act))
