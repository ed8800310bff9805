"""Score an artifact under a named recipe beside its controls, read the test set once, seal the table into the card.

`verify=ARTIFACT` recomputes that artifact's claim and ledger from its files and the data alone, and says what holds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.compose import Asked, command

KEYS = "jobs.evaluate:Keys"


@dataclass(frozen=True)
class Keys:
    artifact: str | None = None
    """Folder or URI of an artifact; null: OUT/artifact."""
    verify: str | None = None
    """Folder or URI of an artifact whose claim is to be recomputed: holds or not, and where."""
    controls: bool | tuple[str, ...] = True
    """Random real, coreset, start and full data under the same recipe; or some: [start, random@floats]."""


def act(asked: Asked) -> int:
    if asked.own.verify:
        return verified(asked)
    at = asked.own.artifact or asked.run.at("artifact")
    scored(asked, at, asked.own.controls)
    print(table(at))
    print(f"next: {asked.line('report')}")
    return 0


def scored(asked: Asked, at: str, controls: bool | Sequence[str] = True) -> bool:
    """Score the artifact; false where its card holds this recipe's table already."""
    from rayd.api.work import scored

    return scored(asked.run, at, controls)


def verified(asked: Asked) -> int:
    from rayd.errors import Failed
    from rayd.run.verify import verify

    own_data = any(word.startswith("data") for word in asked.words)
    findings = []
    for finding in verify(
        asked.own.verify, asked.run if own_data else None, methods=asked.run.methods, gpus=asked.run.scale.gpus
    ):
        findings.append(finding)
        print(finding, flush=True)
    broken = [finding.what for finding in findings if not finding.holds]
    if broken:
        raise Failed(f"{asked.own.verify}: the claim does not hold: {', '.join(broken)}")
    print(f"rayd: {asked.own.verify}: the claim holds")
    return 0


def table(at: str) -> str:
    """The scores and the verdict, as text."""
    from rayd.artifact import fields
    from rayd.evaluate.table import Table
    from rayd.store import Store

    return str(Table(fields.table(Store(at).read("controls.json"))))


if __name__ == "__main__":
    sys.exit(command("evaluate", __doc__, act, KEYS))
