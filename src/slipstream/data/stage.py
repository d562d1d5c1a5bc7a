"""The temporary folder of a preparation, and what killed ones have left."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slipstream.errors import OutputError


@contextmanager
def stage_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` for the time of the block, locked, so that nobody takes it for a killed one's.

    What preparations of ``out`` that were killed have left is removed first.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans(out)
        folder, descriptor = _locked(out)
    except OSError as error:
        raise OutputError(out, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _locked(out: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.stage-", dir=out.parent))
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another preparation took it for an orphan, before it was locked
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder, descriptor
        os.close(descriptor)


def _remove_orphans(out: Path) -> None:
    """Removes stages that nobody holds, and, if nobody is at work on ``out``, half-written data sets."""
    alive = False
    for stage in out.parent.glob(f".{out.name}.stage-*"):
        descriptor = os.open(stage, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(stage)
        except BlockingIOError:
            alive = True
        finally:
            os.close(descriptor)
    for partial in [] if alive else out.parent.glob(f".{out.name}.partial-*"):
        shutil.rmtree(partial)
