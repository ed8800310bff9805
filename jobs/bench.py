"""Measure every speed we claim, against the plain way in the same run: one JSON line a row, a table on standard error.

usage: python -m jobs.bench [experts unroll codecs objectives evaluate buffer scaling trust | all] [size=default|full]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.compose import exit_code

NAMES = ("experts", "unroll", "codecs", "objectives", "evaluate", "buffer", "scaling", "trust")


def main(words: Sequence[str]) -> int:
    if "--help" in words or "-h" in words or not words:
        print((__doc__ or "").strip())
        return 0
    size = next((word.removeprefix("size=") for word in words if word.startswith("size=")), "default")
    wanted = [word for word in words if not word.startswith("size=")] or ["all"]
    strange = [word for word in wanted if word not in (*NAMES, "all")]
    if strange or size not in ("default", "full"):
        word, allowed = (
            (strange[0], " ".join((*NAMES, "all"))) if strange else (f"size={size}", "size=default size=full")
        )
        print(f"rayd: {word}: allowed is {allowed}; see python -m jobs.bench --help", file=sys.stderr)
        return 2
    return exit_code(lambda: measure(NAMES if "all" in wanted else wanted, size))


def measure(names: Sequence[str], size: str) -> int:
    from rayd.studies.bench import HEAD, rows

    print(HEAD, file=sys.stderr)
    for name in names:
        for row in rows(name, size):
            print(row.json(), flush=True)
            print(row.line(), file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
