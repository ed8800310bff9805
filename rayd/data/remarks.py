"""What is wrong with a dataset, or worth knowing, in plain words; what a run would refuse is said to be refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rayd.data.config import DataConfig
from rayd.data.load import load, too_bad
from rayd.data.survey import Survey
from rayd.errors import Refused

State = Literal["refused", "warning", "note"]
UNEVEN = 3.0
"""Largest class by smallest from which on a set counts as imbalanced."""
FEW = 5
"""Training images of a class below which its experts learn little of it."""
ENLARGED = 1.1
"""How much a picture is enlarged before it counts."""
NAMED = 5
"""Examples in a line."""


@dataclass(frozen=True)
class Remark:
    state: State
    what: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.state:<9}{self.what}" + (f"; {self.do}" if self.do else "")


def remarks(survey: Survey, config: DataConfig) -> list[Remark]:
    """Refusals first, then warnings, then notes."""
    found = [*_refused(survey, config), *_files(survey, config), *_classes(survey, config), *_duplicates(survey)]
    found += _pictures(survey, config)
    return sorted(found, key=lambda remark: ("refused", "warning", "note").index(remark.state))


def _number(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _refused(survey: Survey, config: DataConfig) -> Iterator[Remark]:
    """What loading refuses. It decodes the images into the cache, where the run will find them."""
    try:
        load(config)
    except Refused as refusal:
        yield Remark("refused", str(refusal))
    if len(survey.classes) < 2:
        yield Remark("refused", f"one class, {survey.classes[0]}: nothing to tell apart", "add a second class")


def _files(survey: Survey, config: DataConfig) -> Iterator[Remark]:
    for part, one in survey.parts.items():
        if one.bad:
            listed = [{"name": name, "why": why} for name, why in one.bad]
            try:
                too_bad(config, part, listed, one.listed)
            except Refused:
                continue  # loading says so
            named = _some([f"{name} ({why})" for name, why in one.bad])
            yield Remark("warning", f"{part}: {len(one.bad)} of {one.listed} files are left out: {named}")


def _classes(survey: Survey, config: DataConfig) -> Iterator[Remark]:
    train, test = survey.parts["train"], survey.parts.get("test")
    by_size = sorted((count, name) for count, name in zip(train.counts, survey.classes, strict=True) if count)
    if survey.imbalance > UNEVEN:
        (least, small), (most, large) = by_size[0], by_size[-1]
        handled = (
            "data.balance=true: small classes count several times"
            if config.balance
            else "data.balance=true lets small classes count several times"
        )
        yield Remark(
            "warning", f"imbalance {survey.imbalance:.0f}:1, {most:,} of {large}, {least:,} of {small}", handled
        )
    single = [name for count, name in by_size if count == 1]
    if single:
        which = _number(len(single), "class has", "classes have")
        yield Remark("warning", f"{which} one training image: {_some(single)}", "add some")
    few = [f"{name} ({count})" for count, name in by_size if 1 < count < FEW]
    if few:
        which = _number(len(few), "class has", "classes have")
        yield Remark("warning", f"{which} fewer than {FEW} training images: {_some(few)}", "add some")
    if test is not None:
        untested = [name for count, name in zip(test.counts, survey.classes, strict=True) if not count]
        if untested:
            which = _number(len(untested), "class has", "classes have")
            yield Remark("warning", f"{which} no test image, so its accuracy is not known: {_some(untested)}")
    alike = Counter(" ".join(name.lower().split()) for name in survey.classes)
    double = [name for name in survey.classes if alike[" ".join(name.lower().split())] > 1]
    if double:
        yield Remark("warning", f"class names that differ in case or spaces only: {_some(double)}", "join them")


def _duplicates(survey: Survey) -> Iterator[Remark]:
    across = [f"{duplicate.first} = {duplicate.again}" for duplicate in survey.duplicates if duplicate.across]
    within = [f"{duplicate.first} = {duplicate.again}" for duplicate in survey.duplicates if not duplicate.across]
    apart = [f"{duplicate.first} = {duplicate.again}" for duplicate in survey.duplicates if not duplicate.agree]
    if across:
        do = "remove them from one of the two: test accuracy is too high by what was memorised"
        which = _number(len(across), "test image is a training image", "test images are training images")
        yield Remark("warning", f"{which} too: {_some(across)}", do)
    if within:
        which = _number(len(within), "image is", "images are")
        yield Remark("warning", f"{which} there twice in one part: {_some(within)}", "keep one")
    if apart:
        which = _number(len(apart), "pair of equal images has", "pairs of equal images have")
        yield Remark("warning", f"{which} different labels: {_some(apart)}", "correct one")


def _pictures(survey: Survey, config: DataConfig) -> Iterator[Remark]:
    n, sizes = len(survey.sides), Counter(survey.sides)
    if len(sizes) > 1 or not survey.same:
        most = _some([f"{w}x{h} ({count})" for (w, h), count in sizes.most_common()])
        yield Remark(
            "note",
            f"{_number(len(sizes), 'size', 'sizes')}: {most}",
            f"all become {config.size} px by data.resize={config.resize}",
        )
    small = sum(ENLARGED * min(sides) < config.size for sides in survey.sides) if config.size else 0
    if small > n / 10:
        yield Remark("warning", f"{small} of {n} pictures are smaller than data.size={config.size} and are enlarged")
    if survey.white:
        handled = f"their upper 8 of data.bits={config.bits} bits are kept"
        yield Remark("note", f"pictures of 16 bits with values up to {survey.white}", handled)
    other = [f"{mode} ({count})" for mode, count in survey.modes.items() if mode not in ("L", "RGB", "I;16")]
    if other:
        yield Remark("note", f"pictures in other modes are converted: {_some(other)}")
    if survey.grey and config.channels == 3:
        yield Remark("note", "all pictures are grey", "data.channels=1 makes sets three times as small")
