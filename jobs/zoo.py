"""Write the index of the finished sets in artifacts/, and the table of artifacts/README.md.

usage: python -m jobs.zoo [NAME 'COMMAND THAT MADE IT']

A set is a folder that a run left: copy OUT/artifact to artifacts/NAME first. The matrix of a whitening is left out here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from jobs.compose import exit_code

START, END = "<!-- finished sets: begin -->\n", "<!-- finished sets: end -->\n"


def main(words: Sequence[str]) -> int:
    if "--help" in words or len(words) not in (0, 2):
        print((__doc__ or "").strip() + "\n\npython -m jobs.zoo")
        return 0 if "--help" in words else 2
    return exit_code(lambda: written(words))


def written(words: Sequence[str]) -> int:
    from rayd.artifact.write import leave_out_matrix
    from rayd.artifact.zoo import INDEX, OURS, Entry, entries, entry_of
    from rayd.schema import to_dict
    from rayd.store import Store

    commands = {name: entry.command for name, entry in entries(str(OURS)).items()} if (OURS / INDEX).exists() else {}
    commands |= {words[0]: words[1]} if words else {}
    for name in commands:
        leave_out_matrix(Store(OURS / name))
    listed: list[Entry] = [entry_of(OURS / name, command) for name, command in sorted(commands.items())]
    (OURS / INDEX).write_text(json.dumps([to_dict(entry) for entry in listed], indent=1, sort_keys=True) + "\n")
    path = OURS / "README.md"
    text = path.read_text()
    before, _, rest = text.partition(START)
    path.write_text(before + START + table(listed) + END + rest.partition(END)[2])
    return 0


def table(listed: Sequence[object]) -> str:
    """A row for each set."""
    rows = ["", "| name | test accuracy | stored numbers | whole folder | made by |", "|---|---|---|---|---|"]
    for entry in map(vars, listed):
        score = entry["score"]
        figures = f"{100 * score['mean']:.1f} ± {100 * score['std']:.1f} %"
        accuracy = f"{figures} (n={score['n']}, {score['recipe']}, {score['net']})"
        sizes = f"{entry['stored']:,} bytes | {entry['bytes']:,} bytes"
        rows.append(f"| `zoo:{entry['name']}` | {accuracy} | {sizes} | `{entry['command']}` |")
    return "\n".join([*rows, "", ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
