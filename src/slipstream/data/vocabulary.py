"""Counting distinct values and looking up their ids: compiled hash tables over 64-bit hashes.

Two values whose hashes are equal are taken for one; among 10 million values the chance that any two are is 3 in a
million.
"""

from __future__ import annotations

import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from slipstream.data.schema import MAX_ROWS
from slipstream.data.text import Text, hash_text, pack
from slipstream.errors import DataError

Hashes = npt.NDArray[np.uint64]
_PIECE = 1 << 18


@numba.njit(cache=True, nogil=True)
def _count(
    keys: Hashes, index: Any, counts: Any, used: int, limit: int, hashes: Hashes, begin: int, new_rows: Any
) -> Any:
    """Counts ``hashes[begin:]`` until the table is full; returns rows done, values now, values that are new."""
    mask = np.uint64(keys.size - 1)
    fresh = 0
    for i in range(begin, hashes.size):
        h = hashes[i]
        slot = h & mask
        while index[slot] >= 0 and keys[slot] != h:
            slot = (slot + np.uint64(1)) & mask
        if index[slot] < 0:
            if used == limit:
                return i, used, fresh
            keys[slot], index[slot], counts[slot] = h, used, 0
            new_rows[fresh] = i
            used += 1
            fresh += 1
        if counts[slot] < 4294967295:
            counts[slot] += np.uint32(1)
    return hashes.size, used, fresh


@numba.njit(cache=True, nogil=True)
def _rehash(old_keys: Hashes, old_index: Any, old_counts: Any, keys: Hashes, index: Any, counts: Any) -> None:
    mask = np.uint64(keys.size - 1)
    for i in range(old_keys.size):
        if old_index[i] >= 0:
            slot = old_keys[i] & mask
            while index[slot] >= 0:
                slot = (slot + np.uint64(1)) & mask
            keys[slot], index[slot], counts[slot] = old_keys[i], old_index[i], old_counts[i]


class ValueCounter:
    """Counts the values of one column.

    Memory is 16 bytes a slot, 20 to 45 bytes a distinct value; the values themselves go to a temporary file in
    ``folder``.
    """

    def __init__(self, folder: Path) -> None:
        self._keys, self._index, self._counts = self._table(1 << 10)
        self.distinct = 0
        """Distinct values so far."""
        self._values = tempfile.TemporaryFile(dir=folder)
        self._lengths = tempfile.TemporaryFile(dir=folder)

    @staticmethod
    def _table(size: int) -> tuple[Hashes, npt.NDArray[np.int32], npt.NDArray[np.uint32]]:
        return np.zeros(size, dtype=np.uint64), np.full(size, -1, dtype=np.int32), np.zeros(size, dtype=np.uint32)

    def add(self, hashes: Hashes, text: Text) -> None:
        """Counts the values of some rows.

        Args:
            hashes: uint64 ``[n]``, of the fields of ``text``.
            text: The fields.
        """
        begin, new_rows = 0, np.empty(hashes.size, dtype=np.int64)
        while begin < hashes.size:
            limit = min(self._keys.size * 3 // 4, MAX_ROWS - 1)
            begin, self.distinct, fresh = _count(
                self._keys, self._index, self._counts, self.distinct, limit, hashes, begin, new_rows
            )
            if fresh:
                rows = new_rows[:fresh]
                offsets, data = pack(text.data, text.starts[rows], text.ends[rows])
                self._values.write(data.data)
                self._lengths.write(np.diff(offsets).astype(np.uint32).data)
            if begin < hashes.size:
                if limit == MAX_ROWS - 1:
                    raise DataError("has too many distinct values", remedy="hash the column to a fixed size")
                self._grow()

    def _grow(self) -> None:
        bigger = self._table(self._keys.size * 2)
        _rehash(self._keys, self._index, self._counts, *bigger)
        self._keys, self._index, self._counts = bigger

    def finish(self, path: Path, min_frequency: int, known: Known | None = None) -> Lookup:
        """Writes the vocabulary, most frequent value first, and makes its lookup; the counter is empty afterwards.

        Args:
            path: Parquet file to write: value, count. Row ``i`` has the id ``i + 1``.
            min_frequency: Values seen less often are left out.
            known: A vocabulary to extend: its values come first, in its order, with what was counted here added.
        """
        used = self._index >= 0
        if known is not None:
            found = np.empty(self._keys.size, dtype=np.int32)
            known.lookup.find(self._keys, found)
            again = used & (found > 0)
            more = np.zeros(known.lookup.num_values, dtype=np.int64)
            more[found[again] - 1] = self._counts[again]
            used &= found == 0
        slots = np.flatnonzero(used & (self._counts >= min_frequency))
        # Frequent values get neighbouring ids, which the caches like; of equally frequent ones the first seen comes
        # first.
        slots = slots[np.lexsort((self._index[slots], -self._counts[slots].astype(np.int64)))]
        hashes, order, counts = self._keys[slots], self._index[slots], self._counts[slots]
        self._keys, self._index, self._counts = self._table(1)
        del slots
        lengths = _mapped(self._lengths, np.uint32)
        values = _mapped(self._values, np.uint8)
        ends = np.cumsum(lengths, dtype=np.int64)
        schema = pa.schema({"value": pa.large_string(), "count": pa.int64()})
        with pq.ParquetWriter(path, schema) as writer:
            old = np.empty(0, dtype=np.uint64)
            if known is not None:
                old = known.copy_to(writer, more)
            for begin in range(0, max(order.size, 1), _PIECE):
                rows = order[begin : begin + _PIECE]
                offsets = np.zeros(rows.size + 1, dtype=np.int64)
                np.cumsum(lengths[rows], out=offsets[1:])
                source = np.repeat(ends[rows] - lengths[rows] - offsets[:-1], lengths[rows]) + np.arange(offsets[-1])
                data = values[source.astype(np.int64)]
                array = pa.Array.from_buffers(
                    pa.large_string(), rows.size, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
                )
                piece = counts[begin : begin + _PIECE].astype(np.int64)
                writer.write_table(pa.table({"value": array, "count": pa.array(piece)}, schema=schema))
        self.close()
        return Lookup(np.concatenate([old, hashes]) if known is not None else hashes)

    def close(self) -> None:
        """Closes the temporary files."""
        self._values.close()
        self._lengths.close()


def _mapped(file: Any, dtype: type[np.generic]) -> npt.NDArray[Any]:
    file.flush()
    size = file.seek(0, 2)
    return np.memmap(file, dtype=dtype, mode="r") if size else np.empty(0, dtype=dtype)


@numba.njit(cache=True, nogil=True)
def _insert(keys: Hashes, ids: Any, hashes: Hashes) -> int:
    mask = np.uint64(keys.size - 1)
    for i in range(hashes.size):
        slot = hashes[i] & mask
        while ids[slot] != 0:
            if keys[slot] == hashes[i]:
                return i
            slot = (slot + np.uint64(1)) & mask
        keys[slot], ids[slot] = hashes[i], i + 1
    return -1


@numba.njit(cache=True, nogil=True)
def _find(keys: Hashes, ids: Any, hashes: Hashes, out: Any) -> None:
    mask = np.uint64(keys.size - 1)
    for i in range(hashes.size):
        slot = hashes[i] & mask
        while ids[slot] != 0 and keys[slot] != hashes[i]:
            slot = (slot + np.uint64(1)) & mask
        out[i] = ids[slot]


class Lookup:
    """From the hash of a value to its id: the ``i``-th of ``hashes`` has the id ``i + 1``, any other value 0.

    Args:
        hashes: uint64 ``[n]``, distinct.
    """

    def __init__(self, hashes: Hashes) -> None:
        size = 1 << max(4, (hashes.size * 4 // 3).bit_length())
        self._keys, self._ids = np.zeros(size, dtype=np.uint64), np.zeros(size, dtype=np.int32)
        self.num_values = hashes.size
        self.digest = sha256(np.ascontiguousarray(hashes, dtype="<u8").data).hexdigest()
        """Of the values and their order."""
        twice = _insert(self._keys, self._ids, hashes)
        if twice >= 0:
            raise DataError("a value stands twice in the vocabulary", line=twice + 1, remedy="prepare the data again")

    def find(self, hashes: Hashes, out: npt.NDArray[np.int32]) -> None:
        """Writes the id of every hash to ``out`` int32 ``[n]``, which may be a strided view."""
        _find(self._keys, self._ids, hashes, out)


class Known(NamedTuple):
    """A vocabulary that is extended."""

    path: Path
    """Its file."""
    lookup: Lookup
    """Its ids."""

    def copy_to(self, writer: pq.ParquetWriter, more: npt.NDArray[np.int64]) -> Hashes:
        """Writes its values with ``more`` [n] added to their counts; returns their hashes."""
        hashes: list[Hashes] = [np.empty(0, dtype=np.uint64)]
        done = 0
        for batch in pq.ParquetFile(self.path).iter_batches(_PIECE, columns=["value", "count"]):
            value = batch.column(0).cast(pa.large_string())
            count = batch.column(1).to_numpy() + more[done : done + batch.num_rows]
            writer.write_table(pa.table({"value": value, "count": pa.array(count)}, schema=writer.schema))
            piece = np.empty(batch.num_rows, dtype=np.uint64)
            hash_text(*Text.from_arrow(batch.column(0).cast(pa.string())), piece)
            hashes.append(piece)
            done += batch.num_rows
        return np.concatenate(hashes)
