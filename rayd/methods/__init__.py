"""One paper, one file. A method is a sentence of these words: a codec, an objective and any number of terms."""

from __future__ import annotations

from rayd.distill.contract import Codec, Objective, Term
from rayd.methods.dc import Gradient
from rayd.methods.dm import Distribution
from rayd.methods.dwa import Dwa
from rayd.methods.haba import Contrast, Haba
from rayd.methods.idc import Formation
from rayd.methods.lodc import Lodc
from rayd.methods.lss import Lss
from rayd.methods.mim4dd import Mim4dd
from rayd.methods.mtt import Mtt
from rayd.methods.ncfm import Calibrate, Ncfm
from rayd.methods.nsd import Guidance, Nsd
from rayd.methods.pixel import Pixel

CODECS: dict[str, type[Codec]] = {
    "pixel": Pixel,
    "lodc": Lodc,
    "lss": Lss,
    "nsd": Nsd,
    "haba": Haba,
    "formation": Formation,
}

OBJECTIVES: dict[str, type[Objective]] = {
    "mtt": Mtt,
    "gradient": Gradient,
    "distribution": Distribution,
    "ncfm": Ncfm,
    "dwa": Dwa,
}

TERMS: dict[str, type[Term]] = {
    "guidance": Guidance,
    "contrast": Contrast,
    "calibrate": Calibrate,
    "mim4dd": Mim4dd,
}
