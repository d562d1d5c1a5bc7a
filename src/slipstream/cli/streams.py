"""Standard output and error that outlast whoever reads them: a training must not end because nobody watches it."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

_GONE = (errno.EPIPE, errno.EIO)
"""A pipe without a reader (``… | head``), and a terminal that is closed."""


class _Lasting(FileIO):
    """A file descriptor that leads nowhere once nobody reads it."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE or stat.S_ISREG(os.fstat(self.fileno()).st_mode):
                raise
            lead_nowhere(self.fileno())
            return memoryview(data).nbytes


def lead_nowhere(descriptor: int) -> None:
    """Has what is still written to a file descriptor go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def lasting(stream: TextIOWrapper) -> TextIOWrapper:
    """The same stream, as one that takes any text, and goes on where its reader is gone.

    Args:
        stream: Standard output or standard error; not to be used any more.
    """
    stream.flush()
    return TextIOWrapper(
        BufferedWriter(_Lasting(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",  # a file name need not be text
        line_buffering=stream.line_buffering or stream.write_through,  # the latter: python -u
    )
