"""Checks of the columns that a raw file has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from slipstream.errors import DataError

MAX_COLUMNS = 10_000
"""Columns of a raw file."""


def missing_columns(needed: Sequence[str], found: Sequence[str], file: Path) -> None:
    """Raises when a column of the schema is not in the file, or is there twice.

    Raises:
        DataError: Names the first such column, and those that there are.
    """
    check_number_of_columns(len(found), file)
    times = Counter(found)
    for name in needed:
        if not times[name]:
            there = ", ".join(map(repr, found[:12])) + (", …" if len(found) > 12 else "")
            remedy = "correct the file, or its schema"
            if any(mark in other for other in found for mark in ",:#"):
                remedy += ' (in YAML, a name with a comma, a colon or # stands in quotes: "a, b")'
            raise DataError(
                f"the column is missing; the file has {there or 'none'}", file=file, column=name, remedy=remedy
            )
        if times[name] > 1:
            raise DataError(
                f"the column is there {times[name]} times", file=file, column=name, remedy="rename the others"
            )


def check_number_of_columns(count: int, file: Path) -> None:
    """Refuses a table wider than any log.

    Raises:
        DataError: It has more than ``MAX_COLUMNS`` columns.
    """
    if count > MAX_COLUMNS:
        remedy = "choose the columns to learn from"
        raise DataError(f"has {count:,} columns, at most {MAX_COLUMNS:,} are read", file=file, remedy=remedy)
