"""One paper, one file, and three literal dicts. A method is a sentence: a codec, an objective and any number of terms.

    pixel    plain images (dataset distillation, arXiv:1811.10959)
    lodc     low-rank factors of each image (LoDC)
    lss      low-rank spaces shared by images (MTT-LSS)
    nsd      spectra times shared kernels, and guidance by real samples (NSD)
    haba     bases times hallucinators, and their adversarial contrast (HaBa)
    idc      several small images in each stored one, around any codec (IDC): `formation`
    jpeg     coefficients of ordinary JPEG files
    mtt      trajectories of experts (MTT; DATM and TESLA are settings of it)
    dc       gradients of a network (DC, DSA): `gradient`
    dm       mean features of fresh networks (DM): `distribution`
    ncfm     characteristic functions of features, and calibration (NCFM)
    dwa      statistics of a trained network, perturbed (DWA; SRe2L is a setting of it)
    mim4dd   mutual information with the real images, a term (MIM4DD)

To add a method: write one file with a `Codec`, `Objective` or `Term` (rayd/distill/contract.py) that has a frozen `Config`;
name it in a dict below; add a sentence in configs/method. Outside this folder: `methods=FOLDER` (configs/README.md).
"""

from __future__ import annotations

from rayd.distill.contract import Codec, Objective, Term
from rayd.methods.dc import Gradient
from rayd.methods.dm import Distribution
from rayd.methods.dwa import Dwa
from rayd.methods.haba import Contrast, Haba
from rayd.methods.idc import Formation
from rayd.methods.jpeg import Jpeg
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
    "jpeg": Jpeg,
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
