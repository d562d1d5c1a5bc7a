"""Rows of a raw file as columns, and the checks that turn them into numbers and hashes, or report them as bad."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from slipstream.data.schema import Schema
from slipstream.data.text import (
    MISSING,
    NOT_A_NUMBER,
    NOT_FINITE,
    OK,
    Text,
    begins_with_minus,
    hash_text,
    parse_numbers,
    split_values,
)
from slipstream.errors import DataError

Floats = npt.NDArray[np.float64]
MAX_BAD_ROWS = 100_000
"""Rows of one chunk that may be bad."""
_LARGEST = float(np.finfo(np.float32).max)
_LATEST = 1e11
"""Seconds, the year 5138; a larger number counts milliseconds, or finer ones."""


class Numbers(NamedTuple):
    """A column of numbers."""

    values: Floats
    """float64 ``[n]``, NaN where the status is not OK."""
    status: npt.NDArray[np.uint8]
    """uint8 ``[n]``: OK, MISSING, NOT_FINITE or NOT_A_NUMBER."""


class Lists(NamedTuple):
    """A column of lists."""

    values: Text
    """All values, ``[m]``."""
    offsets: npt.NDArray[np.int64]
    """int64 ``[n + 1]``."""


Column = Text | Numbers | Lists


class BadRow(NamedTuple):
    """A row that cannot be used."""

    file: Path
    line: int
    column: str | None
    reason: str
    text: str
    """The row as it stands in the file."""

    def error(
        self, remedy: str = "correct the row, or pass --on-bad-row=quarantine to set such rows aside"
    ) -> DataError:
        """The error that stops the reading."""
        return DataError(self.reason, file=self.file, line=self.line, column=self.column, remedy=remedy)


def check_number_of_bad_rows(count: int, first: BadRow) -> None:
    """Gives up on a chunk of which hardly a row can be used, before each of them is kept in memory.

    Raises:
        DataError: There are more than ``MAX_BAD_ROWS``.
    """
    if count > MAX_BAD_ROWS:
        raise DataError(
            f"{first.reason}; so it is with more than {MAX_BAD_ROWS:,} rows near it",
            file=first.file,
            line=first.line,
            column=first.column,
            remedy="check that the format is the right one",
        )


class Places(NamedTuple):
    """Where the rows of a chunk stand."""

    file: Path
    lines: npt.NDArray[np.int64]
    """int64 ``[n]``, 1-based line (text) or row (Parquet) of each row."""
    file_of: Callable[[int], Path] | None
    """The file of each row, where rows of several files are mixed; None: all are of ``file``."""

    def of(self, row: int) -> tuple[Path, int]:
        """File and line of a row of the chunk."""
        return self.file if self.file_of is None else self.file_of(row), int(self.lines[row])


@dataclass
class RawChunk:
    """Some rows as they were read."""

    file: Path
    rows: int
    lines: npt.NDArray[np.int64]
    """int64 ``[n]``, 1-based line (text) or row (Parquet) of each row."""
    columns: Mapping[str, Column]
    show: Callable[[int], str]
    """The row as it stands in the file, for the quarantine."""
    malformed: list[BadRow] = field(default_factory=list)
    """Rows that could not even be split into columns; they are not among ``rows``."""
    file_of: Callable[[int], Path] | None = None
    """The file of each row, where rows of several files are mixed; None: all are of ``file``."""

    @property
    def places(self) -> Places:
        """Where its rows stand."""
        return Places(self.file, self.lines, self.file_of)


@dataclass
class Decoded:
    """Some rows, checked."""

    rows: npt.NDArray[np.int64]
    """int64 ``[n]``, which rows of the chunk these are."""
    labels: npt.NDArray[np.float32] | None
    """float32 ``[n]``; None when the schema has no label: all positives."""
    time: npt.NDArray[np.int64] | None
    """int64 ``[n]``, unix seconds."""
    dense: Floats
    """float64 ``[n, n_dense]``, NaN where missing."""
    texts: list[Text]
    """The fields of each categorical column."""
    hashes: npt.NDArray[np.uint64]
    """uint64 ``[F, n]``, their hashes."""
    bags: list[tuple[Text, npt.NDArray[np.uint64], npt.NDArray[np.int64]]]
    """For each multi-hot column: values ``[m]``, hashes uint64 ``[m]``, offsets int64 ``[n + 1]``."""
    bad: list[BadRow]
    """Rows that were left out, in order of their lines."""
    places: Places
    """Of all rows of the chunk."""

    def __len__(self) -> int:
        return self.rows.size


class Rules(NamedTuple):
    """What counts as a bad row."""

    schema: Schema
    binary: bool
    """Labels other than 0 and 1 are bad."""
    nan_is_missing: bool
    """A dense value that is NaN or infinite, or a word for a missing one, counts as missing instead of bad."""


def decode(chunk: RawChunk, rules: Rules) -> Decoded:
    """Checks and converts the columns of ``chunk``; rows that fail are listed in ``bad`` and left out."""
    schema = rules.schema
    marks = _Marks(chunk)
    labels = None
    if schema.label is not None:
        values, status = _numbers(chunk.columns[schema.label])
        hint = "" if schema.label_threshold is not None else " (labels are 0 and 1, or ratings with a label_threshold)"
        marks.numbers(schema.label, chunk.columns[schema.label], status, missing="has no label", hint=hint)
        marks.add(np.abs(values) > _LARGEST, schema.label, lambda row: f"label {values[row]:g} is too large")
        labels = values
        if schema.label_threshold is not None:  # in float32, which a column may be: else 4.1 there is below 4.1
            with np.errstate(over="ignore"):
                labels = np.where(values.astype(np.float32) >= np.float32(schema.label_threshold), 1.0, 0.0)
        if rules.binary:
            wrong = (status == OK) & (labels != 0) & (labels != 1)
            marks.add(wrong, schema.label, lambda row: f"label {values[row]:g} is neither 0 nor 1")
    seconds = None
    if schema.time is not None:
        seconds, status = unix_seconds(chunk.columns[schema.time])
        marks.numbers(schema.time, chunk.columns[schema.time], status, missing="has no time", what="time")
    dense = np.empty((chunk.rows, len(schema.dense)))
    for i, name in enumerate(schema.dense):
        dense[:, i], status = _numbers(chunk.columns[name])
        if rules.nan_is_missing:
            missing = (status == NOT_FINITE) | _says_missing(chunk.columns[name], status)
            status = np.where(missing, MISSING, status)
        marks.numbers(name, chunk.columns[name], status, dense=True)
        marks.add(np.abs(dense[:, i]) > _LARGEST, name, lambda row, i=i: f"value {dense[row, i]:g} is too large")
    texts = [_text(chunk.columns[name], name, chunk.file) for name in schema.categorical]
    for role, name in (("user", schema.user), ("item", schema.item)):
        if name is not None:
            text = texts[schema.categorical.index(name)]
            marks.add(begins_with_minus(*text), name, lambda row, t=text, r=role: f"{r} id {t.field(row)} is negative")
    keep = np.arange(chunk.rows) if marks.clean else np.flatnonzero(~marks.bad)
    if not marks.clean:
        texts = [text.rows(keep) for text in texts]
        dense = dense[keep]
    hashes = np.empty((len(texts), keep.size), dtype=np.uint64)
    for i, text in enumerate(texts):
        hash_text(*text, hashes[i])
    bags = []
    for column in schema.multi_hot:
        values, offsets = _lists(chunk.columns[column.name], column.name, column.separator, chunk.file)
        if not marks.clean:
            values, offsets = _pick_lists(values, offsets, keep)
        hashed = np.empty(len(values.starts), dtype=np.uint64)
        hash_text(*values, hashed)
        bags.append((values, hashed, offsets))
    return Decoded(
        rows=keep,
        labels=None if labels is None else labels[keep].astype(np.float32),
        time=None if seconds is None else seconds[keep].astype(np.int64),
        dense=dense,
        texts=texts,
        hashes=hashes,
        bags=bags,
        bad=sorted([*chunk.malformed, *marks.rows], key=lambda bad: bad.line),
        places=chunk.places,
    )


class _Marks:
    """Collects the rows of a chunk that fail a check; each row is listed once, with the first reason."""

    def __init__(self, chunk: RawChunk) -> None:
        self._chunk = chunk
        self.bad = np.zeros(chunk.rows, dtype=np.bool_)
        self.rows: list[BadRow] = []

    @property
    def clean(self) -> bool:
        return not self.rows

    def add(self, wrong: npt.NDArray[np.bool_], column: str, reason: Callable[[int], str]) -> None:
        if not wrong.any():
            return
        for row in np.flatnonzero(wrong & ~self.bad).tolist():
            self.bad[row] = True
            file, line = self._chunk.places.of(row)
            self.rows.append(BadRow(file, line, column, reason(row), self._chunk.show(row)))
            check_number_of_bad_rows(len(self.rows), self.rows[0])

    def numbers(
        self,
        name: str,
        column: Column,
        status: npt.NDArray[np.uint8],
        *,
        missing: str | None = None,
        what: str = "number",
        dense: bool = False,
        hint: str = "",
    ) -> None:
        as_missing = " (prepared with --set nan=missing, it counts as missing)" if dense else ""

        def not_a_number(row: int) -> str:
            shown = repr(column.field(row)[:40]) if isinstance(column, Text) else "value"
            said = as_missing if isinstance(column, Text) and _is_missing_word(column.field(row)) else ""
            return f"{shown} is not a {what}{hint}{said}"

        if missing is not None:
            self.add(status == MISSING, name, lambda row: missing)
        self.add(status == NOT_FINITE, name, lambda row: f"value is NaN or infinite{as_missing}")
        self.add(status == NOT_A_NUMBER, name, not_a_number)


def unix_seconds(column: Column) -> Numbers:
    """Times as whole unix seconds.

    Numbers may be seconds, milli-, micro- or nanoseconds, told apart by their size; ISO dates are taken as UTC. Dates
    that do not begin with their year are none: 01/02/2024 is two days.
    """
    values, status = _numbers(column)
    size = np.abs(values)
    if (size > _LATEST).any():
        units = np.select([size > 1e17, size > 1e14, size > _LATEST], [1e9, 1e6, 1e3], 1.0)
        values = values / units
        status = np.where(np.abs(values) > _LATEST, NOT_A_NUMBER, status).astype(np.uint8)
    if isinstance(column, Text) and (status == NOT_A_NUMBER).any():
        rows = np.flatnonzero(status == NOT_A_NUMBER)
        series = pl.Series([column.field(int(row)) for row in rows], dtype=pl.String)
        try:
            dates = series.str.to_datetime(strict=False, time_zone="UTC", time_unit="ms", format=None, exact=True)
        except pl.exceptions.ComputeError:
            # Polars 1 raises when no value follows a date format that it knows; Polars 2 gives nulls.
            dates = pl.Series([None] * len(rows), dtype=pl.Datetime("ms", "UTC"))
        parsed = dates.dt.epoch("s").to_numpy().astype(np.float64)
        good = (np.abs(parsed) <= _LATEST) & series.str.contains(r"^\s*\d{4}").to_numpy()
        values[rows[good]], status[rows[good]] = parsed[good], OK
    return Numbers(np.floor(values), status)


_MISSING_WORDS = frozenset({"na", "n/a", "<na>", "null", "none"})
"""What pandas, R and databases write for a missing number; NaN is one already."""


def _is_missing_word(field: str) -> bool:
    return field.strip().lower() in _MISSING_WORDS


def _says_missing(column: Column, status: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which fields are a word for a missing number, bool ``[n]``."""
    found = np.zeros(status.size, dtype=np.bool_)
    if isinstance(column, Text):
        for row in np.flatnonzero(status == NOT_A_NUMBER).tolist():
            found[row] = _is_missing_word(column.field(row))
    return found


def _numbers(column: Column) -> Numbers:
    if isinstance(column, Numbers):
        return Numbers(column.values.copy(), column.status)
    if isinstance(column, Lists):
        n = column.offsets.size - 1
        return Numbers(np.full(n, np.nan), np.full(n, NOT_A_NUMBER, dtype=np.uint8))
    return Numbers(*parse_numbers(column))


def _text(column: Column, name: str, file: Path) -> Text:
    if not isinstance(column, Text):
        kind = "lists" if isinstance(column, Lists) else "floats or times"
        remedy = "change its role in the schema, or its type"
        raise DataError(f"holds {kind}, not categories", file=file, column=name, remedy=remedy)
    return column


def _lists(column: Column, name: str, separator: str, file: Path) -> tuple[Text, npt.NDArray[np.int64]]:
    if isinstance(column, Lists):
        # As in a text with separators, an empty value is none.
        there = column.values.ends > column.values.starts
        if there.all():
            return column.values, column.offsets
        before = np.concatenate([[0], np.cumsum(there)])
        return column.values.rows(there), before[column.offsets]
    return split_values(_text(column, name, file), separator)


def _pick_lists(values: Text, offsets: npt.NDArray[np.int64], rows: npt.NDArray[Any]) -> tuple[Text, npt.NDArray[Any]]:
    first, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    picked = np.zeros(rows.size + 1, dtype=np.int64)
    np.cumsum(lengths, out=picked[1:])
    return values.rows(np.repeat(first - picked[:-1], lengths) + np.arange(picked[-1])), picked
