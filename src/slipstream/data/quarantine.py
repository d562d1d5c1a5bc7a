"""A side file for rows that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TextIO

from slipstream.data.chunk import BadRow

_HEADER = "file\tline\tcolumn\treason\trow\n"


class Quarantine:
    """Writes bad rows as tab-separated text: file, line, column, reason, and the row as it stands.

    The file is made with the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        """Rows written."""
        self._file: TextIO | None = None

    def add(self, rows: Iterable[BadRow]) -> None:
        """Writes some rows."""
        for row in rows:
            if self._file is None:
                self._file = self.path.open("w", encoding="utf-8", newline="\n")
                self._file.write(_HEADER)
            text = row.text.replace("\r", "")
            self._file.write(f"{row.file.name}\t{row.line}\t{row.column or ''}\t{row.reason}\t{text}\n")
            self.count += 1

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
