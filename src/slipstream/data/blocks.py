"""Reads text files in pieces of whole lines, counting them: plain or gzip, with or without a byte-order mark."""

from __future__ import annotations

import gzip
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, cast

from slipstream.errors import DataError

BLOCK_BYTES = 8 << 20
"""Bytes a piece: large enough to amortise the calls, small enough that a few in flight need little memory."""
FREE_BYTES = 64 << 20
"""Bytes that any packed file may unpack to."""
MAX_RATIO = 200
"""Beyond those, unpacked ÷ packed at most; logs reach 5 to 50, bombs 1,000 and more."""
_BOM = b"\xef\xbb\xbf"


class Block(NamedTuple):
    """Whole lines of a file."""

    data: bytes
    """Each line is ended by LF, also the last one of the file."""
    line: int
    """1-based number of the first line."""
    lines: int
    """How many there are."""


class TextFile:
    """A file of text to be read once from its start, unpacked when its first bytes say gzip.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be opened or is no regular file; while reading: its gzip stream is damaged, or unpacks to
            so much that it was made to fill the memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 1
        """Where the reader is, for messages."""
        self._unpacked = 0
        check_regular(path)
        try:
            self._raw = path.open("rb")
            packed = self._raw.read(2) == b"\x1f\x8b"
            self._raw.seek(0)
            self._size = path.stat().st_size
        except OSError as error:
            raise _unreadable(path, error) from error
        self._file = cast(BinaryIO, gzip.open(self._raw)) if packed else self._raw
        self._packed = packed

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most ``size``; none at the end."""
        try:
            data = self._file.read(size)
        except EOFError as error:
            raise self._damaged("the gzip stream is truncated") from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise self._damaged(f"the gzip stream is damaged ({error})") from error
        except OSError as error:
            raise _unreadable(self.path, error, self.line) from error
        self._unpacked += len(data)
        if self._packed and self._unpacked > max(FREE_BYTES, MAX_RATIO * self._size):
            raise DataError(
                f"unpacks to more than {MAX_RATIO} times its {self._size:,} bytes, as no log does",
                file=self.path,
                line=self.line,
                remedy="if you trust it, unpack it and name the unpacked file",
            )
        return data

    def _damaged(self, what: str) -> DataError:
        return DataError(what, file=self.path, line=self.line, remedy="copy or download the file again")

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._raw.closed

    def readable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Closes it."""
        self._file.close()
        self._raw.close()

    def __enter__(self) -> TextFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_regular(path: Path) -> None:
    """Refuses what is there but is no file: a folder, a pipe that nobody writes to, a device without end.

    Raises:
        DataError: It is missing, or no regular file.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(mode):
        raise DataError("is not a regular file", file=path, remedy="name a file")


def _unreadable(path: Path, error: OSError, line: int | None = None) -> DataError:
    reason = error.strerror or str(error)
    remedy = "check the path and its permissions"
    return DataError(f"cannot be read ({reason})", file=path, line=line, remedy=remedy)


def read_blocks(path: Path, size: int = BLOCK_BYTES) -> Iterator[Block]:
    """The lines of a text file, in pieces of about ``size`` bytes.

    Raises:
        DataError: As :class:`TextFile`, or a line is far longer than ``size``.
    """
    line, rest = 1, b""
    with TextFile(path) as file:
        first = True
        while True:
            file.line = line
            data = file.read(size)
            if first:
                data, first = data.removeprefix(_BOM), False
            if not data:
                break
            cut = data.rfind(b"\n") + 1
            if not cut:
                rest += data
                if len(rest) > 8 * size:
                    remedy = "check the format and the line ends"
                    raise DataError(
                        f"a line is too long (over {8 * size:,} bytes); is this a text file?",
                        file=path,
                        line=line,
                        remedy=remedy,
                    )
                continue
            block = b"".join([rest, memoryview(data)[:cut]]) if rest else data[:cut]
            rest = data[cut:]
            lines = block.count(b"\n")
            yield Block(block, line, lines)
            line += lines
    if rest:
        yield Block(rest + b"\n", line, 1)


def drop_unreadable(block: bytes, most: int = 100_000) -> tuple[bytes, list[tuple[int, str]]]:
    """Takes out the lines that are no text; returns the rest and (0-based line within the block, what is wrong).

    The line is left as an empty one, so that the numbers of the lines stay. After ``most`` and one it stops looking.
    """
    if b"\0" not in block:
        if block.isascii():
            return block, []
        try:
            block.decode("utf-8")
        except UnicodeDecodeError:
            pass
        else:
            return block, []
    bad: list[tuple[int, str]] = []
    lines = block.split(b"\n")
    for number, line in enumerate(lines):
        reason = _why_no_text(line)
        if reason is not None:
            bad.append((number, reason))
            lines[number] = b""
            if len(bad) > most:
                break
    return b"\n".join(lines), bad


def _why_no_text(line: bytes) -> str | None:
    if b"\0" in line:
        return "holds a NUL byte (is this a text file in UTF-8?)"
    if line.isascii():
        return None
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "invalid UTF-8"
    return None
