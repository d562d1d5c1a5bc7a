"""Commands as a user gives them, and what may come of any of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from slipstream.cli.entry import run


def called(arguments: Sequence[str], command: Callable[[list[str]], int] = run) -> int:
    """The status of a command line, 0 or 2; AssertionError if it is another, or not said in one line.

    Args:
        arguments: The command line.
        command: What runs it.
    """
    errors = StringIO()
    # Warnings, that an older checkpoint is used, say, are lines of their own.
    with redirect_stdout(StringIO()), redirect_stderr(errors), warnings.catch_warnings(record=True):
        status = command(list(arguments))
    lines = errors.getvalue().splitlines()
    assert status in (0, 2) and len(lines) == (status == 2), (status, lines)
    assert not any("the memory does not suffice" in line for line in lines), lines
    return status


def probabilities(path: Path) -> None:
    """AssertionError unless a file of ``predict`` holds probabilities."""
    for row in path.read_text().splitlines()[1:]:
        assert 0.0 <= float(row.split(",")[1]) <= 1.0, row
