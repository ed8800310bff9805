"""Pieces that sections of the page share: a figure at two widths, a picture, a caption, a row of numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from rayd.artifact.png import data_uri, png
from rayd.report import draw
from rayd.report.shell import Html, joined, tag

EMPTY = Html()


def both(figure: Callable[..., Html]) -> Html:
    """Drawn twice, so that a phone shows letters of the same size as a desk."""
    sizes = (("wide", draw.WIDE), ("narrow", draw.NARROW))
    return joined(tag("div", figure(width=width), class_=name) for name, width in sizes)


def picture(image_CHW: Tensor, alt: str) -> Html:
    height, width = image_CHW.shape[1:]
    return tag("img", alt=alt, width=width, height=height, src=data_uri(png(image_CHW)))


def captioned(figure: Html, *caption: Any) -> Html:
    return joined([figure, tag("figcaption", *caption)])


def cells(values: Mapping[str, str]) -> Html:
    return tag(
        "div", *(tag("div", tag("b", value), tag("span", name)) for name, value in values.items()), class_="facts"
    )
