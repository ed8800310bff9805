"""A score table, as text and as HTML: rows of sets, networks and accuracies, and what they say of the coresets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Table:
    """What controls.json holds, or the rows of a set that has no card."""

    facts: Mapping[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """set, net, mean, std, n, ci95 ...; the networks in order, the best set first."""
        return sorted(self.facts["rows"], key=lambda row: (row["net"], -row["mean"]))

    @property
    def verdict(self) -> str:
        """Whether the set beats the coresets: yes | no | undecided | not asked."""
        return str(self.facts["verdict"]["overall"])

    def __getitem__(self, name: str) -> dict[str, Any]:
        """The first row of a set."""
        return next(row for row in self.facts["rows"] if row["set"] == name)

    def __str__(self) -> str:
        scores = self.facts
        lines = [f"{'set':<21}{'net':<16}{'test accuracy':>16}{'n':>4}{'95 %':>8}"]
        lines += [f"{row[0]:<21}{row[1]:<16}{row[2]:>16}{row[3]:>4}{row[4]:>8}" for row in self._cells()]
        lines += [f"{name:<21}left out: {why.split('. ')[0]}" for name, why in scores["skipped"].items()]
        robust = [f"{name.upper()} {scores['robust'][name]:.3f}" for name in ("lrs", "ars") if name in scores["robust"]]
        lines += [self._how(), *([f"robust scores, 0 to 1: {', '.join(robust)}"] if robust else [])]
        return "\n".join([*lines, *(f"  {why}" for why in scores["verdict"]["why"]), self._conclusion()])

    def _repr_html_(self) -> str:
        head = ("set", "network", "test accuracy", "n", "95 %")
        return f"{html_table(head, self._cells())}<p>{escape(self._how())}<br>{escape(self._conclusion())}</p>"

    def _cells(self) -> list[list[str]]:
        return [
            [
                row["set"],
                row["net"],
                f"{100 * row['mean']:.1f} +- {100 * row['std']:.1f}",
                str(row["n"]),
                f"{100 * row['ci95']:.1f}",
            ]
            for row in self.rows
        ]

    def _how(self) -> str:
        recipe = self.facts["recipe"]
        length = f"{recipe['epochs']} epochs" if recipe.get("epochs") else f"{recipe['steps']} steps of every set"
        size = f"{self.facts['floats']:,} floats, {self.facts['bytes']:,} bytes"
        return f"{size}; recipe {recipe['name']}, {length}"

    def _conclusion(self) -> str:
        return f"beats the coreset: {self.verdict}"


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of texts, each escaped."""
    cells = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{cells}</table>"
