"""Reads text files in pieces of whole lines, counting them: plain or gzip, with or without a byte-order mark."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from slipstream.errors import DataError

BLOCK_BYTES = 8 << 20
"""Bytes a piece: large enough to amortise the calls, small enough that a few in flight need little memory."""
_BOM = b"\xef\xbb\xbf"


class Block(NamedTuple):
    """Whole lines of a file."""

    data: bytes
    """Each line is ended by LF, also the last one of the file."""
    line: int
    """1-based number of the first line."""
    lines: int
    """How many there are."""


def open_text(path: Path) -> BinaryIO:
    """Opens a file for reading bytes, unpacking gzip when its first bytes say so.

    Raises:
        DataError: The file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return cast(BinaryIO, gzip.open(path)) if packed else path.open("rb")
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", file=path) from error


def read_blocks(path: Path, size: int = BLOCK_BYTES) -> Iterator[Block]:
    """The lines of a text file, in pieces of about ``size`` bytes.

    Raises:
        DataError: The file cannot be opened, its gzip stream is damaged, or a line is far longer than ``size``.
    """
    line, rest = 1, b""
    with open_text(path) as file:
        first = True
        while True:
            try:
                data = file.read(size)
            except EOFError as error:
                raise DataError("the gzip stream is truncated", file=path, line=line) from error
            except (zlib.error, OSError) as error:
                raise DataError(f"cannot be read: {error}", file=path, line=line) from error
            if first:
                data, first = data.removeprefix(_BOM), False
            if not data:
                break
            cut = data.rfind(b"\n") + 1
            if not cut:
                rest += data
                if len(rest) > 8 * size:
                    raise DataError("a line is too long; is this a text file?", file=path, line=line)
                continue
            block = b"".join([rest, memoryview(data)[:cut]]) if rest else data[:cut]
            rest = data[cut:]
            lines = block.count(b"\n")
            yield Block(block, line, lines)
            line += lines
    if rest:
        yield Block(rest + b"\n", line, 1)


def drop_invalid_utf8(block: bytes) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Takes out the lines that are not UTF-8; returns the rest and (0-based line within the block, its bytes).

    The line is left as an empty one, so that the numbers of the lines stay.
    """
    if block.isascii():
        return block, []
    bad: list[tuple[int, bytes]] = []
    done, left = [], block
    lines = 0
    while True:
        try:
            left.decode("utf-8")
        except UnicodeDecodeError as error:
            start = left.rfind(b"\n", 0, error.start) + 1
            stop = left.index(b"\n", error.start)
            lines += left.count(b"\n", 0, start)
            bad.append((lines, left[start:stop]))
            done += [left[:start], b"\n"]
            lines += 1
            left = left[stop + 1 :]
        else:
            return b"".join([*done, left]), bad
