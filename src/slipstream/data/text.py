"""Compiled work on columns of text: finding fields, hashing them, reading numbers, all without the interpreter lock.

A column of text is a :class:`Text`: bytes and the range of each row's field in them. That fits a piece of a delimited
file, where all columns share the bytes, as well as an Arrow array of strings.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]
OK, MISSING, NOT_FINITE, NOT_A_NUMBER = 0, 1, 2, 3
"""What :func:`parse_numbers` says of a field."""

_ONE, _U8, _U30, _U27, _U31 = np.uint64(1), np.uint64(8), np.uint64(30), np.uint64(27), np.uint64(31)
_MUL1, _MUL2, _SEED = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15)
_POWERS = 10.0 ** np.arange(23)
_TAB, _LF, _CR, _SPACE, _ZERO, _NINE, _DOT, _MINUS, _PLUS = 9, 10, 13, 32, 48, 57, 46, 45, 43


class Text(NamedTuple):
    """The fields of ``n`` rows: row ``i`` is ``data[starts[i]:ends[i]]``."""

    data: Bytes
    """Read-only bytes."""
    starts: Ints
    """int32 ``[n]``."""
    ends: Ints
    """int32 ``[n]``."""

    def __len__(self) -> int:  # type: ignore[override]
        return self.starts.size

    def rows(self, rows: npt.NDArray[Any] | slice) -> Text:
        """The rows at positions, or where a mask is true."""
        return Text(self.data, self.starts[rows], self.ends[rows])

    def field(self, row: int) -> str:
        """One field as a string, for messages."""
        return bytes(self.data[self.starts[row] : self.ends[row]]).decode("utf-8", "replace")

    def strings(self) -> pa.Array:
        """An Arrow array of strings."""
        offsets, data = pack(self.data, self.starts, self.ends)
        return pa.Array.from_buffers(
            pa.large_string(), self.starts.size, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        )

    @staticmethod
    def from_arrow(array: pa.Array) -> Text:
        """The fields of an Arrow array of strings; null becomes the empty text.

        Args:
            array: Of type string or binary (32-bit offsets).
        """
        _, offsets, data = array.buffers()
        if len(array) == 0 or offsets is None:
            return Text(np.zeros(0, dtype=np.uint8), *(np.zeros(len(array), dtype=np.int32) for _ in range(2)))
        bounds = np.frombuffer(offsets, dtype=np.int32, count=len(array) + 1, offset=4 * array.offset)
        starts, ends = bounds[:-1].copy(), bounds[1:].copy()
        if array.null_count:
            null = array.is_null().to_numpy(zero_copy_only=False)
            ends[null] = starts[null]
        return Text(np.frombuffer(data if data is not None else b"", dtype=np.uint8), starts, ends)


@numba.njit(cache=True, nogil=True, inline="always")
def _mix(h: Any) -> Any:
    # The finaliser of splitmix64 (Steele et al. 2014), a bijection of 64 bits.
    h = (h ^ (h >> _U30)) * _MUL1
    h = (h ^ (h >> _U27)) * _MUL2
    return h ^ (h >> _U31)


@numba.njit(cache=True, nogil=True)
def hash_text(data: Bytes, starts: Ints, ends: Ints, out: npt.NDArray[np.uint64]) -> None:
    """64-bit hash of every field into ``out`` uint64 ``[n]``. Stored encoders rely on it: it must never change."""
    for i in range(starts.size):
        # Unsigned, because a signed index could be negative and costs a check at each byte.
        p, q = np.uint64(starts[i]), np.uint64(ends[i])
        h = _mix(q - p + _SEED)
        while q - p >= _U8:
            word = np.uint64(data[p])
            for j in numba.literal_unroll((1, 2, 3, 4, 5, 6, 7)):
                word |= np.uint64(data[p + np.uint64(j)]) << np.uint64(8 * j)
            h = _mix(h ^ word)
            p += _U8
        if p < q:
            word, shift = np.uint64(0), np.uint64(0)
            while p < q:
                word |= np.uint64(data[p]) << shift
                shift += _U8
                p += _ONE
            h = _mix(h ^ word)
        out[i] = h


@numba.njit(cache=True, nogil=True)
def _scan(data: Bytes, delimiter: int, bounds: npt.NDArray[np.int32], lines: Ints, bad: Ints, found: Ints) -> Any:
    columns = bounds.shape[0] - 1
    row = line = nbad = 0
    column = 0
    if data.size:
        bounds[0, 0] = 0
    for p in range(data.size):
        c = data[p]
        if c == delimiter:
            column += 1
            if column < columns:
                bounds[column, row] = p + 1
        elif c == _LF:
            if column == columns - 1:
                bounds[columns, row] = p if p > bounds[0, row] and data[p - 1] == _CR else p + 1
                lines[row] = line
                row += 1
            else:
                bad[nbad], found[nbad] = line, column + 1
                nbad += 1
            line += 1
            column = 0
            bounds[0, row] = p + 1
    return row, nbad


class Fields(NamedTuple):
    """The fields of a piece of a delimited file."""

    columns: list[Text]
    lines: Ints
    """int32 ``[n]``, 0-based line of each row within the piece."""
    wrong: list[tuple[int, int]]
    """Lines that were left out because of their number of fields, with that number."""


def split_lines(block: bytes, delimiter: str, columns: int, count: int, most: int = 1 << 30) -> Fields:
    """Splits a piece of a delimited file without quotes.

    Args:
        block: Whole lines, each ended by LF or CRLF.
        delimiter: One ASCII character.
        columns: Number of fields a line must have.
        count: Number of lines.
        most: List so many wrong lines at most.
    """
    data = np.frombuffer(block, dtype=np.uint8)
    # A row of that many fields has as many bytes at least, however many lines there are.
    bounds = np.empty((columns + 1, min(count, len(block) // columns) + 1), dtype=np.int32)
    lines, bad, found = (np.empty(count, dtype=np.int32) for _ in range(3))
    rows, wrong = _scan(data, ord(delimiter), bounds, lines, bad, found)
    texts = [Text(data, bounds[i, :rows], bounds[i + 1, :rows] - np.int32(1)) for i in range(columns)]
    wrong = min(wrong, most)
    return Fields(texts, lines[:rows], list(zip(bad[:wrong].tolist(), found[:wrong].tolist(), strict=True)))


@numba.njit(cache=True, nogil=True)
def _parse(data: Bytes, starts: Ints, ends: Ints, values: npt.NDArray[np.float64], status: Bytes) -> None:
    for i in range(starts.size):
        p, q = np.uint64(starts[i]), np.uint64(ends[i])
        while p < q and data[p] == _SPACE:
            p += _ONE
        while q > p and data[q - _ONE] == _SPACE:
            q -= _ONE
        if p == q:
            values[i], status[i] = np.nan, MISSING
            continue
        negative = data[p] == _MINUS
        if negative or data[p] == _PLUS:
            p += _ONE
        mantissa = np.int64(0)
        digits = 0
        decimals = -1
        plain = True
        while p < q:
            c = data[p]
            if _ZERO <= c <= _NINE and digits < 18:
                mantissa = mantissa * 10 + np.int64(c - _ZERO)
                digits += 1
                if decimals >= 0:
                    decimals += 1
            elif c == _DOT and decimals < 0:
                decimals = 0
            else:
                plain = False
                break
            p += _ONE
        # An exact mantissa divided by an exact power of ten is rounded once, so it is the nearest double (Clinger
        # 1990).
        if not plain or digits == 0 or (decimals > 0 and mantissa > 9007199254740992):
            values[i], status[i] = np.nan, NOT_A_NUMBER
            continue
        value = float(mantissa) if decimals <= 0 else float(mantissa) / _POWERS[decimals]
        values[i], status[i] = -value if negative else value, OK


def parse_numbers(text: Text) -> tuple[npt.NDArray[np.float64], Bytes]:
    """Reads numbers.

    Returns:
        Values float64 ``[n]``, NaN unless OK, and status uint8 ``[n]``: OK, MISSING, NOT_FINITE or NOT_A_NUMBER.
    """
    values, status = np.empty(len(text.starts)), np.empty(len(text.starts), dtype=np.uint8)
    _parse(text.data, text.starts, text.ends, values, status)
    for row in np.flatnonzero(status == NOT_A_NUMBER):
        # What the fast path does not know: exponents, many digits, nan, and what is no number at all.
        field = text.field(int(row))
        try:
            value = float(field) if "_" not in field else None
        except ValueError:
            value = None
        if value is not None:
            finite = np.isfinite(value)
            values[row], status[row] = (value, OK) if finite else (np.nan, NOT_FINITE)
    return values, status


@numba.njit(cache=True, nogil=True)
def _split_values(data: Bytes, starts: Ints, ends: Ints, separator: int, out: Any, write: bool) -> int:
    first, last, offsets = out
    n = 0
    for i in range(starts.size):
        p = begin = starts[i]
        while p <= ends[i]:
            if p == ends[i] or data[p] == separator:
                if p > begin:
                    if write:
                        first[n], last[n] = begin, p
                    n += 1
                begin = p + 1
            p += 1
        if write:
            offsets[i + 1] = n
    return n


def split_values(text: Text, separator: str) -> tuple[Text, npt.NDArray[np.int64]]:
    """Splits multi-valued fields; returns the values and offsets int64 ``[n + 1]``. Empty values are left out."""
    offsets = np.zeros(len(text.starts) + 1, dtype=np.int64)
    empty = np.empty(0, dtype=np.int32)
    n = _split_values(text.data, text.starts, text.ends, ord(separator), (empty, empty, offsets), False)
    first, last = np.empty(n, dtype=np.int32), np.empty(n, dtype=np.int32)
    _split_values(text.data, text.starts, text.ends, ord(separator), (first, last, offsets), True)
    return Text(text.data, first, last), offsets


@numba.njit(cache=True, nogil=True)
def _copy(data: Bytes, starts: Ints, offsets: npt.NDArray[np.int64], out: Bytes) -> None:
    for i in range(starts.size):
        for j in range(offsets[i + 1] - offsets[i]):
            out[offsets[i] + j] = data[starts[i] + j]


def pack(data: Bytes, starts: Ints, ends: Ints) -> tuple[npt.NDArray[np.int64], Bytes]:
    """Fields one after the other: offsets int64 ``[n + 1]`` and bytes."""
    offsets = np.zeros(starts.size + 1, dtype=np.int64)
    np.cumsum(ends - starts, out=offsets[1:])
    out = np.empty(offsets[-1], dtype=np.uint8)
    _copy(data, starts, offsets, out)
    return offsets, out


@numba.njit(cache=True, nogil=True)
def begins_with_minus(data: Bytes, starts: Ints, ends: Ints) -> npt.NDArray[np.bool_]:
    """Which fields are negative numbers, bool ``[n]``."""
    out = np.zeros(starts.size, dtype=np.bool_)
    for i in range(starts.size):
        p = starts[i]
        out[i] = ends[i] - p > 1 and data[p] == _MINUS and _ZERO <= data[p + 1] <= _NINE
    return out
