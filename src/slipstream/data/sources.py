"""Delimited text as chunks of columns (Parquet: ``parquet``). What the columns mean is the business of ``formats``."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from slipstream.data.blocks import BLOCK_BYTES, Block, drop_unreadable, read_blocks
from slipstream.data.chunk import MAX_BAD_ROWS, BadRow, Column, RawChunk, check_number_of_bad_rows
from slipstream.data.column_checks import check_number_of_columns, missing_columns
from slipstream.data.text import Text, split_lines
from slipstream.errors import DataError

Task = Callable[[], RawChunk]
"""Makes a chunk; may run on another thread than the one that read the bytes."""


class Source(Protocol):
    """A raw data set that can be read as often as needed."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in the order in which they are read."""
        ...

    def tasks(self, columns: Sequence[str]) -> Iterator[Task]:
        """The rows as tasks that make chunks with these columns, in order.

        Raises:
            DataError: A file or column is missing, or a file is damaged.
        """
        ...


@dataclass(frozen=True)
class TextSource:
    """Delimited text files, plain or gzip."""

    files: tuple[Path, ...]
    delimiter: str = ","
    """One ASCII character, or several (``::``)."""
    names: tuple[str, ...] | None = None
    """Names of the columns; None: the first line of each file says them."""
    quotes: bool = True
    """Whether fields may stand in double quotes."""
    block_bytes: int = BLOCK_BYTES

    def tasks(self, columns: Sequence[str]) -> Iterator[Task]:  # noqa: D102
        for file in self.files:
            blocks = read_blocks(file, self.block_bytes)
            names = self.names
            for block in blocks:
                if names is None or (block.line == 1 and self._is_header(block, names)):
                    names = read_header(file, block, self.delimiter)
                    block = _take_line(block)[1]
                missing_columns(columns, names, file)
                if block.data:
                    yield lambda b=block, n=names, f=file: self._chunk(f, b, n, columns)

    def header(self) -> tuple[str, ...]:
        """The names of the columns of the first file.

        Raises:
            DataError: The file is empty.
        """
        for block in read_blocks(self.files[0], self.block_bytes):
            return self.names or read_header(self.files[0], block, self.delimiter)
        raise DataError("is empty", file=self.files[0], remedy="name a file with rows")

    def first_fields(self) -> int:
        """How many fields the first line of the first file has, quotes aside; 0 when the file is empty."""
        for block in read_blocks(self.files[0], self.block_bytes):
            return _take_line(block)[0].count(self.delimiter) + 1
        return 0

    def _is_header(self, block: Block, names: tuple[str, ...]) -> bool:
        # A header that repeats the known names (Avazu's files come with and without one).
        return block.data.split(b"\n", 1)[0].rstrip(b"\r") == self.delimiter.join(names).encode()

    def _chunk(self, file: Path, block: Block, names: Sequence[str], columns: Sequence[str]) -> RawChunk:
        data, unreadable = drop_unreadable(block.data, MAX_BAD_ROWS)

        @cache
        def whole() -> list[bytes]:
            # Only for bad rows, and once for all of them: a block is large.
            return block.data.split(b"\n")

        delimiter = self.delimiter
        if len(delimiter) > 1:
            data, delimiter = data.replace(delimiter.encode(), b"\x1f"), "\x1f"
        if self.quotes and b'"' in data:
            texts, lines, wrong = _split_quoted(data, delimiter, names, file, block)
        else:
            texts, lines, wrong = split_lines(data, delimiter, len(names), block.lines, MAX_BAD_ROWS + 1)
        known = dict(unreadable)
        wrong = [(line, found) for line, found in wrong if line not in known]

        def bad_row(line: int, what: str | int) -> BadRow:
            text = (
                whole()[line]
                if len(unreadable) + len(wrong) < MAX_BAD_ROWS
                else block.data.split(b"\n", line + 1)[line]
            )
            if isinstance(what, int):
                what = f"expected {len(names)} columns, found {what if text.strip() else 0}"
            return BadRow(file, block.line + line, None, what, text.decode("utf-8", "replace"))

        for rows in (unreadable, wrong):
            if rows:
                check_number_of_bad_rows(len(rows), bad_row(*rows[0]))
        malformed = [bad_row(line, what) for line, what in (*unreadable, *wrong)]
        keep = None
        if known and len(names) == 1:
            keep = ~np.isin(lines, list(known))
        picked: dict[str, Column] = {}
        for name in columns:
            text = texts[names.index(name)]
            picked[name] = text if keep is None else text.rows(keep)
        lines = (lines if keep is None else lines[keep]).astype(np.int64)

        def show(row: int) -> str:
            return whole()[int(lines[row])].decode("utf-8", "replace")

        return RawChunk(file, lines.size, block.line + lines, picked, show, malformed)


def _take_line(block: Block) -> tuple[str, Block]:
    line, _, rest = block.data.partition(b"\n")
    return line.decode("utf-8", "replace").rstrip("\r"), Block(rest, block.line + 1, block.lines - 1)


def read_header(file: Path, block: Block, delimiter: str) -> tuple[str, ...]:
    """The names of the columns in the first line of a block.

    Raises:
        DataError: The line is no header.
    """
    line = block.data.partition(b"\n")[0]
    check_number_of_columns(max(line.count(delimiter.encode()), line.count(b",")) + 1, file)
    _, unreadable = drop_unreadable(line)
    if unreadable:
        raise DataError(unreadable[0][1], file=file, line=block.line, remedy="save the file as UTF-8 text")
    try:
        # The second line is only asked for where a quote of the first is open.
        reader = csv.reader([line.decode().rstrip("\r"), ""], delimiter=delimiter[0])
        names = next(reader, ())
    except csv.Error as error:
        raise DataError(
            f"the header cannot be read ({error})", file=file, line=block.line, remedy="correct it"
        ) from error
    if reader.line_num > 1:
        raise DataError("a quote is not closed on its line", file=file, line=block.line, remedy="close it")
    if not names:
        raise DataError("the line is empty", file=file, line=block.line, remedy="begin the file with its header")
    return tuple(name.strip() for name in names)


def _split_quoted(
    data: bytes, delimiter: str, names: Sequence[str], file: Path, block: Block
) -> tuple[list[Text], np.ndarray, list]:
    wrong: list[tuple[int, int]] = []

    def handler(row: pacsv.InvalidRow) -> str:
        wrong.append((row.number - 1, row.actual_columns))
        return "skip"

    keys = [str(i) for i in range(len(names))]
    try:
        table = pacsv.read_csv(
            io.BytesIO(data),
            pacsv.ReadOptions(use_threads=False, column_names=keys, block_size=len(data) + 1),
            pacsv.ParseOptions(delimiter=delimiter, invalid_row_handler=handler, ignore_empty_lines=False),
            pacsv.ConvertOptions(column_types=dict.fromkeys(keys, pa.string()), strings_can_be_null=False),
        ).combine_chunks()
    except pa.ArrowInvalid as error:
        raise _unbalanced(data, file, block) from error
    if table.num_rows + len(wrong) != block.lines:
        raise _unbalanced(data, file, block)
    lines = np.setdiff1d(np.arange(table.num_rows + len(wrong)), [line for line, _ in wrong])
    empty = pa.array([], type=pa.string())
    texts = [Text.from_arrow(column.chunk(0) if column.num_chunks else empty) for column in table.columns]
    return texts, lines, wrong


def _unbalanced(data: bytes, file: Path, block: Block) -> DataError:
    """The error for a block whose quotes do not end on their line, which no line after it survives."""
    lines = data.split(b"\n")
    line = next((number for number, text in enumerate(lines) if text.count(b'"') % 2), 0)
    return DataError(
        "a quote is not closed on its line",
        file=file,
        line=block.line + line,
        remedy="close it; where a text goes on in the next line, take the line break out, or save the table as Parquet",
    )
