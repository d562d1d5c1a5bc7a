"""Typed errors: one line that says what is wrong, where, and what to do.

Everything the library raises on bad input derives from :class:`SlipstreamError`; the command line prints it as one
line and exits with code 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class SlipstreamError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: What is wrong.
        remedy: What the user can do about it.
    """

    said_elsewhere = False
    """Whether another process of the same training prints it, so that it appears once."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message}; {remedy}" if remedy else message)


class ConfigError(SlipstreamError, ValueError):
    """A setting is out of range, or two settings make no sense together."""


class UnsupportedOption(SlipstreamError, ValueError):
    """An option of a PyTorch module or optimizer that row gradients cannot honour."""


class DataError(SlipstreamError, ValueError):
    """A data file cannot be used as it is.

    Args:
        message: What is wrong.
        file: The file in which it was found.
        line: The 1-based line (text formats) or row (binary formats).
        column: The name of the column.
        remedy: What the user can do about it.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        column: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.file = Path(file) if file is not None else None
        self.line = line
        self.column = column
        where = ":".join(str(part) for part in (file, line) if part is not None)
        if column is not None:
            where = f"{where}, column {column!r}" if where else f"column {column!r}"
        super().__init__(f"{where}: {message}" if where else message, remedy=remedy)


class IndexOutOfRange(SlipstreamError, IndexError):
    """An id is outside its table."""


class NotPrepared(DataError):
    """A folder is not a prepared data set, or was made by a newer version."""


class NotInstalled(SlipstreamError, ImportError):
    """An optional package is missing.

    Args:
        what: What needs it.
        package: Its name on PyPI, or an extra of ours such as ``slipstream-rec[mlflow]``.
    """

    def __init__(self, what: str, package: str) -> None:
        super().__init__(f"{what} needs {package}", remedy=f"pip install '{package}'")


class OutputError(SlipstreamError, OSError):
    """Something could not be written: a full disk, a folder without permission.

    Args:
        file: What was to be written.
        error: The system's error.
        remedy: What the user can do about it.
    """

    def __init__(self, file: str | Path, error: Exception, *, remedy: str | None = None) -> None:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        super().__init__(
            f"{file}: cannot be written ({reason})", remedy=remedy or "free space or choose another folder"
        )


class CheckpointError(SlipstreamError, ValueError):
    """A checkpoint is damaged, of a newer version, or of another training."""


class Interrupted(SlipstreamError):
    """The training was asked to end and has ended.

    Args:
        message: By what.
        remedy: How it goes on.
        signal: The signal's number; SIGTERM's by default.
    """

    def __init__(self, message: str, *, remedy: str | None = None, signal: int = 15) -> None:
        super().__init__(message, remedy=remedy)
        self.signal = signal


class NonFiniteError(ConfigError):
    """A loss or a gradient is not a finite number."""


def first_problem(error: ValidationError, *, tag: bool = False) -> str:
    """Where and what, of the first thing that pydantic found wrong.

    Args:
        error: Of pydantic.
        tag: Whether places begin with the tag of a union, which the error's text names elsewhere.
    """
    problem = error.errors(include_url=False)[0]
    places = [str(part) for part in problem["loc"][int(tag) :]]
    said = problem["msg"].removeprefix("Value error, ")
    if places and said.startswith(f"{places[-1]} "):
        places.pop()
    return ": ".join([".".join(places), said] if places else [said])
