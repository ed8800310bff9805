"""The name of a row of the score table: what the row's networks were trained on.

    distilled            the set as decoded               distilled-8bit     rounded and clipped to 8 bits
    start                the codec before any step        full               the whole training set
    KIND@floats          as many real images as the artifact has floats for
    KIND@raw             as many 8-bit images, one byte a label, as the artifact's file has bytes
    KIND@jpeg            as many JPEG files (quality 75), decoded again, as the artifact's file has bytes
    KIND@best            as many files of the format, quality and size that are best on validation, in the artifact's bytes

KIND is random (every network draws its own images), herding or kcentre (in the features of a network trained on the real
set). A name may end in /hard (labels replaced by classes) or /bare (no augmentation): what LRS and ARS need.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rayd.data.images import Spec
from rayd.errors import refuse
from rayd.evaluate import coreset

KINDS = {
    "distilled": "distilled", "distilled-8bit": "distilled, 8 bits", "start": "before any step", "full": "full set",
    "random": "random", "herding": "herding", "kcentre": "k-centre",
}  # fmt: skip
BUDGETS = {
    "floats": "same floats",
    "raw": "same bytes raw",
    "jpeg": "same bytes JPEG",
    "best": "same bytes, best compression",
}
WAYS = {"hard": "hard labels", "bare": "no augmentation"}
LABEL_BYTES = 1


@dataclass(frozen=True)
class RowName:
    """One row's name in its parts."""

    kind: str
    budget: str = ""
    way: str = ""

    @classmethod
    def parse(cls, text: str) -> RowName:
        rest, _, way = text.partition("/")
        kind, _, budget = rest.partition("@")
        return cls(kind, budget, way)

    @classmethod
    def control(cls, text: str, own: Iterable[str] = ()) -> RowName:
        """The name of a control; anything else is refused. `own`: kinds of one's own."""
        name, kinds = cls.parse(text), (*coreset.KINDS, *own)
        if text not in ("start", "full") and not (name.kind in kinds and name.budget in BUDGETS):
            raise refuse("controls", text, f"start | full | {'|'.join(kinds)} @ {'|'.join(BUDGETS)}")
        return name

    def __str__(self) -> str:
        return self.kind + (f"@{self.budget}" if self.budget else "") + (f"/{self.way}" if self.way else "")

    @property
    def label(self) -> str:
        """The name in words."""
        words = (KINDS.get(self.kind, self.kind), BUDGETS.get(self.budget), WAYS.get(self.way))
        return ", ".join(word for word in words if word)

    @property
    def is_distilled(self) -> bool:
        return self.kind.startswith("distilled")

    @property
    def is_coreset(self) -> bool:
        return bool(self.budget)

    @property
    def view(self) -> str:
        """The pixels that the networks see: exact, of 8 bits, or out of compressed files."""
        view = "8-bit" if self.kind == "distilled-8bit" else "exact"
        return {"raw": "8-bit", "jpeg": "jpeg", "best": "compressed"}.get(self.budget, view)

    def images(self, floats: int, size: int, spec: Spec, most: int) -> int:
        """Real images that an artifact of so many floats and bytes leaves room for: one a class at least."""
        n = round(floats / spec.floats) if self.budget == "floats" else size // image_bytes(spec)
        return min(max(n, spec.classes), most)


def image_bytes(spec: Spec) -> int:
    """A real image and its label in 8 bits."""
    return spec.floats + LABEL_BYTES
