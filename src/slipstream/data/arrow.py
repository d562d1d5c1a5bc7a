"""Batches of anything that speaks Arrow's C stream: Arrow, Polars, DuckDB, Hugging Face datasets, pandas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from slipstream.data.batch import Bag, Batch, Inputs
from slipstream.errors import ConfigError, DataError

_MOST_ROWS = 2**31


class ArrowBatches:
    """Iterable batches of an Arrow source; see :meth:`Batches.from_arrow`.

    A table can be iterated again and again; a reader or a relation that is used up by reading only once.

    Args:
        source: An object with ``__arrow_c_stream__``, or a Hugging Face dataset.
        ids: Columns of row ids.
        label: Column of labels; None: all 1.
        dense: Columns of numbers.
        bags: List columns of row ids.
        time: Column of unix seconds or timestamps.
        batch_size: Samples of a batch.
        drop_last: Leave out the last batch if it is smaller.
    """

    def __init__(
        self,
        source: Any,
        ids: Sequence[str],
        label: str | None,
        *,
        dense: Sequence[str] = (),
        bags: Sequence[str] = (),
        time: str | None = None,
        batch_size: int,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        self.source = _streamed(source)
        self.ids, self.label, self.dense, self.bags = tuple(ids), label, tuple(dense), tuple(bags)
        self.time, self.batch_size, self.drop_last = time, batch_size, drop_last

    def __iter__(self) -> Iterator[Batch]:
        reader = pa.RecordBatchReader.from_stream(self.source)
        wanted = [*self.ids, *self.dense, *self.bags, *(n for n in (self.label, self.time) if n is not None)]
        if missing := [name for name in wanted if name not in reader.schema.names]:
            raise DataError("no such column", column=missing[0], remedy=f"use names of {reader.schema.names}")
        wanted = list(dict.fromkeys(wanted))  # a column may serve twice
        if twice := [name for name in wanted if reader.schema.names.count(name) > 1]:
            raise DataError("there are several of this name", column=twice[0], remedy="give columns names of their own")
        first, waiting = 0, []
        for piece in reader:
            waiting.append(piece.select(wanted))
            if sum(part.num_rows for part in waiting) < self.batch_size:
                continue
            table = pa.Table.from_batches(waiting)
            whole = table.num_rows - table.num_rows % self.batch_size
            for start in range(0, whole, self.batch_size):
                yield self._batch(table.slice(start, self.batch_size), first + start)
            first += whole
            waiting = table.slice(whole).to_batches()
        if waiting and not self.drop_last:
            yield self._batch(pa.Table.from_batches(waiting), first)

    def _batch(self, table: pa.Table, first: int) -> Batch:
        def numbers(name: str, dtype: pa.DataType) -> Tensor:
            return torch.from_numpy(_numbers(table[name].combine_chunks(), name, first, dtype))

        size = table.num_rows
        ids = [torch.from_numpy(_ids(table[name].combine_chunks(), name, first)) for name in self.ids]
        dense = [numbers(name, pa.float32()) for name in self.dense]
        return Batch(
            inputs=Inputs(
                torch.stack(dense, dim=1) if dense else torch.empty(size, 0),
                torch.stack(ids, dim=1) if ids else torch.empty(size, 0, dtype=torch.int32),
                tuple(_bag(table[name].combine_chunks(), name, first) for name in self.bags),
            ),
            labels=torch.ones(size) if self.label is None else numbers(self.label, pa.float32()),
            index=torch.arange(first, first + size),
            weights=torch.ones(size),
            time=None if self.time is None else _seconds(table[self.time].combine_chunks(), self.time, first),
        )


def _streamed(source: Any) -> Any:
    """The source, or the Arrow table of a Hugging Face dataset (which has the stream only inside).

    Raises:
        ConfigError: It has no stream.
    """
    if hasattr(source, "__arrow_c_stream__"):
        return source
    inner = getattr(getattr(source, "data", None), "table", None)
    if inner is None or not hasattr(inner, "__arrow_c_stream__"):
        raise ConfigError(
            f"a {type(source).__name__} has no __arrow_c_stream__",
            remedy="pass an Arrow table or reader, a Polars or pandas frame, a DuckDB relation or a datasets.Dataset",
        )
    if getattr(source, "_indices", None) is not None:  # a shuffled or filtered view
        return source.with_format("arrow")[:]
    return inner


def _sample(at: int, offsets: np.ndarray[Any, Any] | None) -> int:
    """The sample of a value: of lists the one whose list holds it."""
    return at if offsets is None else int(np.searchsorted(offsets, at, side="right")) - 1


def _numbers(
    column: pa.Array, name: str, first: int, dtype: pa.DataType, offsets: np.ndarray[Any, Any] | None = None
) -> np.ndarray[Any, Any]:
    """A column as a writable array of one type.

    Raises:
        DataError: It has nulls, or is not of numbers.
    """
    if column.null_count:
        row = first + _sample(int(pc.index(column.is_null(), True).as_py()), offsets)
        raise DataError("a value is missing", line=row + 1, column=name, remedy="fill or filter nulls first")
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"holds {column.type}, not numbers", column=name, remedy=_ENCODE)
    return column.cast(dtype, safe=False).to_numpy(zero_copy_only=False).copy()


_ENCODE = "encode values to row ids first, or let `slipstream prepare` do it"


def _ids(column: pa.Array, name: str, first: int, offsets: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
    """Row ids, int32; of lists those that ``offsets``, int64 [B + 1], divide up.

    Raises:
        DataError: A value is missing, or is no row id.
    """
    if not pa.types.is_integer(column.type) and not column.null_count:
        raise DataError(f"holds {column.type}, not row ids", column=name, remedy=_ENCODE)
    values = _numbers(column, name, first, pa.int64(), offsets)
    wrong = (values < 0) | (values >= _MOST_ROWS)
    if wrong.any():
        at = int(wrong.argmax())
        line = first + _sample(at, offsets) + 1
        raise DataError(f"{column[at]} is no row id", line=line, column=name, remedy="use 0 to 2^31 - 1")
    return values.astype(np.int32)


def _bag(column: pa.Array, name: str, first: int) -> Bag:
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise DataError(f"holds {column.type}, not lists", column=name, remedy="name it in ids, or make it a list")
    if column.null_count:
        row = first + int(pc.index(column.is_null(), True).as_py())
        raise DataError("a list is missing", line=row + 1, column=name, remedy="use an empty list")
    offsets = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64)  # of a slice: they begin where it does
    offsets -= offsets[0]
    return Bag(torch.from_numpy(_ids(column.flatten(), name, first, offsets)), torch.from_numpy(offsets))


def _seconds(column: pa.Array, name: str, first: int) -> Tensor:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("s", column.type.tz), safe=False).cast(pa.int64())
    return torch.from_numpy(_numbers(column, name, first, pa.int64()))
