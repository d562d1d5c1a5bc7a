"""Parquet files as chunks of columns, and what may be asked of their metadata before they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slipstream.data.blocks import FREE_BYTES, MAX_RATIO, check_regular
from slipstream.data.chunk import Column, Lists, Numbers, RawChunk
from slipstream.data.column_checks import check_number_of_columns, missing_columns
from slipstream.data.sources import Task
from slipstream.data.text import MISSING, NOT_A_NUMBER, NOT_FINITE, OK, Text
from slipstream.errors import DataError

DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What Arrow raises on a file that is damaged; the last where the name of a column is."""


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
            except DAMAGE as error:
                raise damaged(file, error, row) from error


def damaged(file: Path, error: Exception, row: int | None = None, column: str | None = None) -> DataError:
    """The error for a Parquet file that cannot be read on."""
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    remedy = "copy or write the file again"
    return DataError(f"is damaged ({reason})", file=file, line=row, column=column, remedy=remedy)


def open_parquet(file: Path) -> pq.ParquetFile:
    """Opens a Parquet file.

    Raises:
        DataError: It cannot be read, or was made to fill the memory.
    """
    check_regular(file)
    size = file.stat().st_size
    with file.open("rb") as raw:
        ends = raw.read(4)
        raw.seek(max(size - 8, 0))
        footer, mark = int.from_bytes(raw.read(4), "little"), raw.read(4)
    if ends != b"PAR1" or mark != b"PAR1" or footer > min(size - 12, _MAX_FOOTER):
        remedy = "check that it is a Parquet file, and copied whole"
        raise DataError("is not a whole Parquet file", file=file, remedy=remedy)
    try:
        reader = pq.ParquetFile(file)
        _check_metadata(reader.metadata, file, size)
        for kind in reader.schema_arrow.types:
            getattr(kind, "tz", None)  # damage to it shows when it is looked at
    except DAMAGE as error:
        raise damaged(file, error) from error
    return reader


def read_table(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a whole Parquet file, or some columns of it in the order of the file.

    Raises:
        DataError: As :func:`open_parquet`, or a page is damaged, or a text is no UTF-8.
    """
    reader = open_parquet(file)
    try:
        table = reader.read(columns)
    except DAMAGE as error:
        raise damaged(file, error) from error
    _check_values(table, file)
    return table


def _check_values(data: pa.Table | pa.RecordBatch, file: Path, first_row: int | None = None) -> None:
    """Refuses what Arrow reads all the same: a text that is no UTF-8, a key beyond its dictionary."""
    for name, column in zip(data.schema.names, data.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            raise damaged(file, error, first_row, name) from error


_MAX_FOOTER = 64 << 20


def _check_metadata(metadata: pq.FileMetaData, file: Path, size: int) -> None:
    check_number_of_columns(metadata.num_columns, file)
    # Not by column: where the metadata of one is damaged, asking for it ends the process (PyArrow 26).
    groups = range(metadata.num_row_groups)
    unpacked = max((metadata.row_group(group).total_byte_size for group in groups), default=0)
    if unpacked > max(FREE_BYTES, MAX_RATIO * size) or metadata.num_rows > max(1 << 20, 8 * MAX_RATIO * size):
        raise DataError(
            f"unpacks to more than {MAX_RATIO} times its {size:,} bytes, as no log does",
            file=file,
            remedy="write it again from a source that you trust",
        )


def arrow_chunk(file: Path, batch: pa.RecordBatch, first_row: int) -> RawChunk:
    """A chunk of Arrow columns.

    Integers, texts, booleans and dictionaries serve as categories or as numbers, floats and times as numbers.

    Raises:
        DataError: A column is of another type, or damaged: a text is no UTF-8.
    """
    _check_values(batch, file, first_row)
    columns = {name: _read_column(batch.column(i), name, file) for i, name in enumerate(batch.schema.names)}
    lines = np.arange(first_row, first_row + batch.num_rows, dtype=np.int64)

    def show(row: int) -> str:
        return "\t".join(_shown(column, row) for column in batch.columns)

    return RawChunk(file, batch.num_rows, lines, columns, show)


def _shown(column: pa.Array, row: int) -> str:
    """A value as text."""
    try:
        return str(column[row].as_py())
    except (pa.ArrowException, ValueError, OverflowError):
        # A time that Python has no type for: too far off, in nanoseconds, or of an unknown zone.
        return column.slice(row, 1).to_string(skip_new_lines=True)[1:-1].strip()


def _read_column(array: pa.Array, name: str, file: Path) -> Column:
    try:
        return _from_arrow(array, name, file)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0][:200]
        remedy = "write it as numbers or texts"
        raise DataError(
            f"type {array.type} cannot be read ({reason})", file=file, column=name, remedy=remedy
        ) from error


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
            remedy = "write it as a timestamp, a date or unix seconds"
            raise DataError(f"type {kind} is not supported", file=file, column=name, remedy=remedy)
        seconds = array.cast(pa.timestamp("ms", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
        null = seconds.is_null().to_numpy(zero_copy_only=False)
        values = pc.fill_null(seconds, 0).to_numpy().astype(np.float64) / 1e3
        # Later than the year 5138, a number of seconds would be taken for one of milliseconds.
        status = np.where(null, MISSING, np.where(np.abs(values) > 1e11, NOT_A_NUMBER, OK)).astype(np.uint8)
        return Numbers(np.where(status == OK, values, np.nan), status)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        filled = pc.fill_null(array, []) if array.null_count else array
        offsets = filled.offsets.to_numpy().astype(np.int64)
        return Lists(_as_text(filled.flatten(), name, file), offsets - offsets[0])
    return _as_text(array, name, file)


def _as_text(array: pa.Array, name: str, file: Path) -> Text:
    kind = array.type
    if pa.types.is_boolean(kind):
        array = array.cast(pa.int8())
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_nested(kind):
        remedy = "write it as numbers or texts"
        raise DataError(f"type {kind} is not supported", file=file, column=name, remedy=remedy)
    return Text.from_arrow(array.cast(pa.string()))
