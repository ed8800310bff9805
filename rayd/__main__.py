"""`rayd VERB WORDS`, or `python -m rayd VERB WORDS`: what `python -m jobs.VERB WORDS` is in a checkout."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from runpy import run_module

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run the verb; 2 where there is none of that name."""
    prepare()
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("--version", "-V"):
        import rayd

        print(f"rayd {rayd.__version__}")
        return 0
    jobs = import_module("jobs")
    if name in jobs.VERBS:
        sys.argv = [f"rayd {name}", *words]
        run_module(f"jobs.{name}", run_name="__main__", alter_sys=False)
        return 0
    print(f"usage: rayd VERB [KEY=VALUE ...], rayd VERB --help\n\nVerbs: {', '.join(jobs.VERBS)}")
    if name in ("--help", "-h"):
        return 0
    print(f"rayd: {name}: no such verb", file=sys.stderr)
    return 2


def prepare() -> None:
    """Make `jobs` importable. A wheel has it as `rayd.jobs`, since other packages have a `jobs` too."""
    if (HERE / "jobs").is_dir():
        sys.modules["jobs"] = import_module("rayd.jobs")
    elif find_spec("jobs") is None:
        sys.path.insert(0, str(HERE.parent))


if __name__ == "__main__":
    sys.exit(main())
