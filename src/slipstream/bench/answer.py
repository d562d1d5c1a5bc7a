"""Waiting for the answer of a process that measures."""

from __future__ import annotations

import select
import subprocess
import time

_LOOK = 0.5
"""Seconds between two looks up: a blocking read may sleep through Ctrl-C, which any thread of the process can take."""


def next_line(process: subprocess.Popen[str], seconds: float) -> str:
    """A process's next line on its standard output, a pipe.

    For processes that answer one line when they are asked: of two at once, the second would not be noticed.

    Args:
        process: A process that was asked.
        seconds: Longest that it may take.

    Returns:
        The line with its end; empty where the process has ended.

    Raises:
        TimeoutError: It took longer; it has been killed.
    """
    assert process.stdout is not None
    limit = time.monotonic() + seconds
    while not select.select([process.stdout], [], [], min(_LOOK, seconds))[0]:
        if time.monotonic() > limit:
            process.kill()
            raise TimeoutError(f"took longer than {seconds:g} s")
    return process.stdout.readline()
