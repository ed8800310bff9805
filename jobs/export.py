"""Render an artifact for others: parquet that Hugging Face reads, WebDataset, image folders, or plain tensors.

A rendering is larger than the numbers it came from and says so; its 8-bit view has a score of its own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from jobs.compose import Asked, command


@dataclass(frozen=True)
class Own:
    artifact: str | None = None
    format: str = "parquet"
    view: str = "png"
    to: str | None = None


def act(asked: Asked) -> int:
    from rayd.artifact.export import export

    own = asked.own
    to = own.to or asked.run.at(f"export/{own.format}")
    names = export(own.artifact or asked.run.at("artifact"), to, own.format, own.view)
    print("\n".join(f"  {name}" for name in names[:10]) + (f"\n  ... {len(names)} files" if len(names) > 10 else ""))
    print(f"rayd: {own.format} in {to}")
    return 0


if __name__ == "__main__":
    sys.exit(command("export", __doc__, act, lambda: Own))
