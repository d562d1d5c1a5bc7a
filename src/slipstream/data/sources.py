"""Raw files as chunks of columns: delimited text and Parquet. What the columns mean is the business of ``formats``."""

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
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from slipstream.data.blocks import BLOCK_BYTES, Block, drop_invalid_utf8, read_blocks
from slipstream.data.chunk import BadRow, Column, Lists, Numbers, RawChunk, missing_columns
from slipstream.data.text import MISSING, NOT_FINITE, OK, Text, split_lines
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
                    header, block = _take_line(block)
                    names = tuple(next(csv.reader([header], delimiter=self.delimiter[0]), ()))
                    names = tuple(name.strip() for name in names)
                missing_columns(columns, names, file)
                if block.data:
                    yield lambda b=block, n=names, f=file: self._chunk(f, b, n, columns)

    def header(self) -> tuple[str, ...]:
        """The names of the columns of the first file.

        Raises:
            DataError: The file is empty.
        """
        for block in read_blocks(self.files[0], self.block_bytes):
            return self.names or tuple(next(csv.reader([_take_line(block)[0]], delimiter=self.delimiter)))
        raise DataError("is empty", file=self.files[0])

    def first_fields(self) -> int:
        """How many fields the first line of the first file has, quotes aside; 0 when the file is empty."""
        for block in read_blocks(self.files[0], self.block_bytes):
            return _take_line(block)[0].count(self.delimiter) + 1
        return 0

    def _is_header(self, block: Block, names: tuple[str, ...]) -> bool:
        # A header that repeats the known names (Avazu's files come with and without one).
        return block.data.split(b"\n", 1)[0].rstrip(b"\r") == self.delimiter.join(names).encode()

    def _chunk(self, file: Path, block: Block, names: Sequence[str], columns: Sequence[str]) -> RawChunk:
        data, invalid = drop_invalid_utf8(block.data)

        @cache
        def whole() -> list[bytes]:
            # Only for bad rows, and once for all of them: a block is large.
            return block.data.split(b"\n")

        delimiter = self.delimiter
        if len(delimiter) > 1:
            data, delimiter = data.replace(delimiter.encode(), b"\x1f"), "\x1f"
        if self.quotes and b'"' in data:
            texts, lines, wrong = _split_quoted(data, delimiter, names)
        else:
            texts, lines, wrong = split_lines(data, delimiter, len(names), block.lines)
        malformed = [
            BadRow(file, block.line + line, None, "invalid UTF-8", whole()[line].decode("utf-8", "replace"))
            for line, _ in invalid
        ]
        known = {line for line, _ in invalid}
        wrong = [(line, found) for line, found in wrong if line not in known]
        if wrong:
            remedy = "" if not self.quotes or b'"' not in data else " (line breaks within quotes are not supported)"
            malformed += [
                BadRow(
                    file,
                    block.line + line,
                    None,
                    f"expected {len(names)} columns, found {found if whole()[line].strip() else 0}{remedy}",
                    whole()[line].decode("utf-8", "replace"),
                )
                for line, found in wrong
            ]
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


def _split_quoted(data: bytes, delimiter: str, names: Sequence[str]) -> tuple[list[Text], np.ndarray, list]:
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
        raise DataError(f"cannot be split into columns: {error}") from error
    lines = np.setdiff1d(np.arange(table.num_rows + len(wrong)), [line for line, _ in wrong])
    empty = pa.array([], type=pa.string())
    texts = [Text.from_arrow(column.chunk(0) if column.num_chunks else empty) for column in table.columns]
    return texts, lines, wrong


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files."""

    files: tuple[Path, ...]
    batch_rows: int = 32_768

    def tasks(self, columns: Sequence[str]) -> Iterator[Task]:  # noqa: D102
        for file in self.files:
            reader = open_parquet(file)
            missing_columns(columns, reader.schema_arrow.names, file)
            row = 1
            try:
                for batch in reader.iter_batches(self.batch_rows, columns=list(columns)):
                    yield lambda b=batch, f=file, r=row: arrow_chunk(f, b, r)
                    row += batch.num_rows
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"is damaged: {error}", file=file, line=row) from error


def open_parquet(file: Path) -> pq.ParquetFile:
    """Opens a Parquet file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"is not a readable Parquet file: {error}", file=file) from error


def arrow_chunk(file: Path, batch: pa.RecordBatch, first_row: int) -> RawChunk:
    """A chunk of Arrow columns.

    Integers, texts, booleans and dictionaries serve as categories or as numbers, floats and times as numbers.
    """
    columns = {name: _from_arrow(batch.column(i), name, file) for i, name in enumerate(batch.schema.names)}
    lines = np.arange(first_row, first_row + batch.num_rows, dtype=np.int64)

    def show(row: int) -> str:
        return "\t".join(str(column[row].as_py()) for column in batch.columns)

    return RawChunk(file, batch.num_rows, lines, columns, show)


def _from_arrow(array: pa.Array, name: str, file: Path) -> Column:
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.cast(kind.value_type)
        kind = array.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = array.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
        null = array.is_null().to_numpy(zero_copy_only=False)
        status = np.where(null, MISSING, np.where(np.isfinite(values), OK, NOT_FINITE)).astype(np.uint8)
        return Numbers(values, status)
    if pa.types.is_temporal(kind):
        if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
            raise DataError(f"type {kind} is not supported", file=file, column=name)
        seconds = array.cast(pa.timestamp("ms", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
        null = seconds.is_null().to_numpy(zero_copy_only=False)
        values = pc.fill_null(seconds, 0).to_numpy().astype(np.float64) / 1e3
        return Numbers(np.where(null, np.nan, values), np.where(null, MISSING, OK).astype(np.uint8))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        filled = pc.fill_null(array, []) if array.null_count else array
        offsets = filled.offsets.to_numpy().astype(np.int64)
        return Lists(_as_text(filled.flatten(), name, file), offsets - offsets[0])
    return _as_text(array, name, file)


def _as_text(array: pa.Array, name: str, file: Path) -> Text:
    kind = array.type
    if pa.types.is_boolean(kind):
        array = array.cast(pa.int8())
    elif pa.types.is_binary(kind) or pa.types.is_nested(kind):
        raise DataError(f"type {kind} is not supported", file=file, column=name)
    return Text.from_arrow(array.cast(pa.string()))
