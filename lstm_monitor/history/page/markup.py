"""Small parts of an HTML page: elements, tables, pictures that lie in the page itself."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 180
"""Pixels an inch: sharp on screens with two pixels a point."""


def element(name: str, *content: str, **attributes: str) -> str:
    """An element of ready HTML; a trailing underscore of an attribute's name (``class_``) is dropped."""
    shown = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return f"<{name}{shown}>{''.join(content)}</{name}>"


def text(name: str, words: str, **attributes: str) -> str:
    """An element of plain words."""
    return element(name, html.escape(words, quote=False), **attributes)


def bullets(lines: Sequence[str]) -> str:
    """A list of sentences; nothing where there are none."""
    return element("ul", *(text("li", sentence(line)) for line in lines)) if lines else ""


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table whose first column names its rows; wide ones scroll by themselves."""
    head = element("thead", element("tr", *(element("th", _breakable(title), scope="col") for title in titles)))
    body = element("tbody", *(_row(row) for row in rows))
    return element("div", element("table", text("caption", caption), head, body), class_="scroll", tabindex="0")


def _breakable(title: str) -> str:
    """A title that may be broken after its slashes."""
    return html.escape(title, quote=False).replace("/", "/<wbr>")


def sentence(words: str) -> str:
    """The words with a capital first letter."""
    return f"{words[:1].upper()}{words[1:]}"


def _row(cells: Sequence[str]) -> str:
    return element("tr", text("th", cells[0], scope="row"), *(text("td", cell) for cell in cells[1:]))


def picture(figure: Figure, alt: str, class_: str = "card") -> str:
    """A drawn figure as a picture with a sentence for who cannot see it; drawn now and freed with `figure`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    width, height = (round(100 * inches) for inches in figure.get_size_inches())
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    size = f'width="{width}" height="{height}"'
    return f'<figure class="{class_}"><img alt="{html.escape(alt)}" {size} loading="lazy" src="{source}"></figure>'
