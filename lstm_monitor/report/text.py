"""Lines for people: sentences folded, columns aligned, numbers and cells in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from lstm_monitor.metrics.catalog import CATALOG


def fold(words: str, width: int) -> list[str]:
    """A sentence as lines of at most so many letters, the next ones indented."""
    lead = len(words) - len(words.lstrip())
    return textwrap.wrap(words, width, subsequent_indent=" " * (lead + 2), break_on_hyphens=False)


def labelled(path: str) -> str:
    """A metric with its unit."""
    unit = CATALOG[path].unit
    return f"{path} ({unit})" if unit and unit != "share" else path


def shown(value: float, unit: str = "", form: str = ".3g") -> str:
    """A number as people read it: a share in percent, ``-`` for NaN."""
    if value != value:
        return "-"
    return f"{100 * value:.3g}%" if unit == "share" else f"{value:{form}}"


FEW = 8
"""A layer of so few cells is listed whole, not by its first and last cells."""


def ends(order: Sequence[int]) -> str:
    """The first five and the last three cells of an order, or all of a few."""
    if len(order) <= FEW:
        return f"in order {', '.join(map(str, order))}"
    return f"first {', '.join(map(str, order[:5]))}; last {', '.join(map(str, order[-3:]))}"


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest entry, the first to the left and the others to the right."""
    first, *others = zip(*rows, strict=True)
    width = max(map(len, first))
    columns = [[f"  {item:<{width}}" for item in first], *(_right(column) for column in others)]
    return ["  ".join(row) for row in zip(*columns, strict=True)]


def _right(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    return [f"{item:>{width}}" for item in column]
