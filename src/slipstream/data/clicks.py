"""Click logs: the rows in time order, each with what the user clicked before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from slipstream.data.chunk import RawChunk
from slipstream.data.column_checks import missing_columns
from slipstream.data.parquet import arrow_chunk, damaged, open_parquet, read_table
from slipstream.data.sources import Task
from slipstream.errors import DataError

HISTORY = ("previous_article", "article_before_previous", "clicks_so_far")
"""Columns that a log gains: the user's last two articles and number of clicks, all known before the click."""
_MOST_CLICKS = 20
"""Clicks that are told apart; more count as this many."""
_PIECE = 65_536
_LINE, _FILE = "\0line", "\0file"
"""Where a row comes from; no column of a log is called so."""


class ClickSource:
    """Columns of Parquet files of clicks, held in memory (about 60 bytes a click) and sorted by time.

    Who clicks again is best told from what he clicked last, so each row gets ``HISTORY``. A user's first click has no
    previous article.

    Args:
        files: The files.
        columns: What is read of them, the following three included; others may be of any type.
        user: Column of users.
        item: Column of articles.
        time: Column of times.

    Raises:
        DataError: A file cannot be read, or a column is missing or of a type that is no number, text or time.
    """

    def __init__(self, files: Sequence[Path], *, columns: Sequence[str], user: str, item: str, time: str) -> None:
        self.files = tuple(files)
        for file in self.files:
            missing_columns(columns, open_parquet(file).schema_arrow.names, file)
        logs = [_read(file, number, columns) for number, file in enumerate(self.files)]
        clicked = pl.col(item)
        try:
            log = pl.concat(logs, how="vertical_relaxed")
            self._log = log.sort(time, maintain_order=True).with_columns(
                clicked.shift(1).over(user).alias(HISTORY[0]),
                clicked.shift(2).over(user).alias(HISTORY[1]),
                pl.int_range(pl.len()).over(user).clip(0, _MOST_CLICKS).alias(HISTORY[2]),
            )
        except pl.exceptions.PolarsError as error:
            reason = str(error).splitlines()[0][:200]
            remedy = "give all files the same columns, ids and times as integers"
            raise DataError(f"cannot be put in order ({reason})", file=self.files[-1], remedy=remedy) from error

    def in_file_order(self) -> ClickSource:
        """The same clicks, each with the same history, in the order of the files."""
        other = copy(self)
        other._log = self._log.sort(_FILE, _LINE)
        return other

    def tasks(self, columns: Sequence[str]) -> Iterator[Task]:
        """The clicks in time order."""
        missing_columns(columns, self._log.columns, self.files[0])
        for start in range(0, len(self._log), _PIECE):
            yield lambda start=start: self._chunk(start, columns)

    def _chunk(self, start: int, columns: Sequence[str]) -> RawChunk:
        piece = self._log.slice(start, _PIECE)
        batch = piece.select(columns).to_arrow().combine_chunks().to_batches()[0]
        chunk = arrow_chunk(self.files[0], batch, 1)
        chunk.lines = piece[_LINE].to_numpy().astype(np.int64)
        files = piece[_FILE].to_numpy()
        chunk.file_of = lambda row: self.files[files[row]]
        return chunk


def _read(file: Path, number: int, columns: Sequence[str]) -> pl.DataFrame:
    """A file's clicks, each with its row and the file's number."""
    table = read_table(file, columns).select(columns)
    for name, kind in zip(columns, table.schema.types, strict=True):
        if pa.types.is_nested(kind) or pa.types.is_decimal256(kind) or isinstance(kind, pa.BaseExtensionType):
            remedy = "write it as numbers or texts"
            raise DataError(f"type {kind} is not supported", file=file, column=name, remedy=remedy)
    try:
        # Without metadata, which Polars takes for text: where it is none, as with the types above, Polars ends in a
        # panic, which is no Exception.
        frame = pl.DataFrame(pl.from_arrow(pa.table(table.columns, names=columns)))
        return frame.with_row_index(_LINE, 1).with_columns(pl.lit(number, pl.UInt32).alias(_FILE))
    except pl.exceptions.PolarsError as error:
        raise damaged(file, error) from error
