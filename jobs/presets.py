"""Write the table of presets into configs/README.md: what each trains for a score, beside its paper.

usage: python -m jobs.presets
"""

from __future__ import annotations

import sys

from jobs.compose import CONFIGS, ask, options
from jobs.published import rows


def section() -> str:
    """The table of every preset of a paper."""
    from rayd.studies.plan.presets import table

    presets = {}
    for name in options("preset"):
        if "/" in name:
            asked = ask("plan", (f"preset={name}", "out=nowhere"))
            figures = (
                f"{row.mean} ± {row.std}".removesuffix(" ± ") for row in rows(asked.published, asked.run.data.name)
            )
            presets[name] = asked.run, ", ".join(dict.fromkeys(figures))
    return table(presets)


def main() -> int:
    from rayd.studies.plan.presets import section_of

    path = CONFIGS / "README.md"
    text = path.read_text()
    path.write_text(text.replace(section_of(text), section()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
