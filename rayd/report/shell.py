"""The HTML of every page. Text becomes markup only through `tag`, which escapes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from rayd.report.style import CSS

VOID = ("meta", "img")
"""Elements without an end."""


class Html(str):
    """Text that is markup already."""


def joined(parts: Iterable[Any]) -> Html:
    """All parts in a row; what is not markup is escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in parts))


def tag(name: str, /, *children: Any, **attrs: Any) -> Html:
    """An element. `class_` is written `class`; an attribute that is None or empty is left out."""
    text = "".join(
        f' {key.rstrip("_")}="{escape(str(value))}"' for key, value in attrs.items() if value not in (None, "")
    )
    return Html(f"<{name}{text}>" if name in VOID else f"<{name}{text}>{joined(children)}</{name}>")


def page(title: str, *body: Html, refresh: float = 0.0) -> str:
    """A whole page, which needs no network; it loads itself again every `refresh` seconds, if any."""
    again = tag("meta", **{"http-equiv": "refresh", "content": f"{refresh:g}"}) if refresh else Html()
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        again,
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(CSS)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


def article(title: str, lead: str, *sections: Iterable[Any]) -> str:
    """A page of a title, a line under it and sections, each a row of parts."""
    header = tag("header", tag("h1", title), tag("p", lead, class_="lead") if lead else "")
    return page(title, header, tag("main", *(tag("section", *parts) for parts in sections)))


def grid(figures: Iterable[Any]) -> Html:
    """Figures side by side; empty ones are left out."""
    return tag("div", *(tag("figure", figure) for figure in figures if figure), class_="grid")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], marked: int | None = None) -> Html:
    """`marked`: the column by which the rows of the distilled set are told apart."""

    def row_class(row: Sequence[Any]) -> str:
        return "own" if marked is not None and str(row[marked]).startswith("distilled") else ""

    lines = (tag("tr", *(tag("td", cell) for cell in row), class_=row_class(row)) for row in rows)
    top = tag("thead", tag("tr", *(tag("th", name) for name in head)))
    return tag("div", tag("table", top, tag("tbody", *lines)), class_="table")
