"""Render an artifact for others: parquet that Hugging Face reads, WebDataset, image folders, or plain tensors.

A rendering is larger than the numbers it came from and says so; its 8-bit view has a score of its own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from jobs.compose import Asked, command

KEYS = "jobs.export:Keys"


@dataclass(frozen=True)
class Keys:
    artifact: str | None = None
    """Folder or URI of an artifact; null: OUT/artifact."""
    format: Literal["parquet", "webdataset", "folder", "tensors"] = "parquet"
    view: Literal["png", "exact"] = "png"
    """png: 8-bit images; exact: tensors as decoded (tensors only)."""
    to: str | None = None
    """Folder to write; null: OUT/export/FORMAT."""


def act(asked: Asked) -> int:
    from rayd.artifact.export import export

    own = asked.own
    to = own.to or asked.run.at(f"export/{own.format}")
    names = export(own.artifact or asked.run.at("artifact"), to, own.format, own.view, asked.run.methods)
    print("\n".join(f"  {name}" for name in names[:10]) + (f"\n  ... {len(names)} files" if len(names) > 10 else ""))
    print(f"rayd: {own.format} in {to}")
    return 0


if __name__ == "__main__":
    sys.exit(command("export", __doc__, act, KEYS))
