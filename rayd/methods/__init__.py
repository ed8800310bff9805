"""One paper, one file. A method is a sentence of these words: a codec, an objective and any number of terms."""

from __future__ import annotations

from rayd.methods.contract import Codec, Objective, Term
from rayd.methods.mtt import Mtt

CODECS: dict[str, type[Codec]] = {}

OBJECTIVES: dict[str, type[Objective]] = {
    "mtt": Mtt,
}

TERMS: dict[str, type[Term]] = {}
