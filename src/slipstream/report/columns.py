"""Columns of a table for a terminal that may be narrow."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

GAP = 2
"""Characters between two columns."""
_NAME = 12
"""Characters that a name keeps, however narrow the terminal is."""


def least_width(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Characters that :func:`fill` needs for these columns, titles and names folded as far as they may be."""
    cells = _longest(rows, len(titles))
    figures = sum(max(*map(len, title.split()), cell) for title, cell in zip(titles[1:], cells[1:], strict=True))
    return min(_NAME, cells[0]) + figures + GAP * (len(titles) - 1)


def _longest(rows: Sequence[Sequence[str]], columns: int) -> list[int]:
    return [max((len(row[place]) for row in rows), default=0) for place in range(columns)]


def fill(
    table: Table, titles: Sequence[str], rows: Sequence[Sequence[str]], *, width: int, left: Collection[int] = (0,)
) -> None:
    """Adds columns and rows, so that figures are never cut: what gives way are the titles, and then the names.

    Args:
        table: An empty table with ``GAP`` characters between its columns.
        titles: Headings, folded between words where ``width`` is too small for them.
        rows: Texts, square brackets in them are no markup.
        width: Characters of the terminal.
        left: Places of the columns that are set flush left. The first one is of names, and is folded if need be.
    """
    from rich.text import Text

    cells = _longest(rows, len(titles))
    natural = sum(max(len(title), longest) for title, longest in zip(titles, cells, strict=True))
    narrow = natural + GAP * (len(titles) - 1) > width
    for place, title in enumerate(titles):
        fixed = max(*map(len, title.split()), cells[place]) if narrow and place else None
        least = None if place else min(_NAME, cells[0])
        justify = "left" if place in left else "right"
        table.add_column(title, justify=justify, overflow="fold", width=fixed, min_width=least)
    for row in rows:
        table.add_row(*map(Text, row))
