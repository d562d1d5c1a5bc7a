"""The temporary folder of a preparation, and what killed ones have left."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slipstream.errors import OutputError


@contextmanager
def stage_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` for the time of the block, locked, so that nobody takes it for a killed one's.

    What preparations of ``out`` that were killed have left is removed first.

    Raises:
        OutputError: It cannot be made, or the system refuses something in the block: readers make errors of their own,
            so what is left is about writing.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans(out)
        folder, descriptor = _locked(out)
    except OSError as error:
        raise OutputError(out, error) from error
    try:
        yield folder
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(out, error) from error
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
    # Others may be at work here and remove the same. What is half-written is listed first: who writes it has held a
    # stage since before.
    halves = list(_beside(out, "partial"))
    alive = False
    for stage in _beside(out, "stage"):
        try:
            descriptor = os.open(stage, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(stage)
        except BlockingIOError:
            alive = True
        finally:
            os.close(descriptor)
    for half in [] if alive else halves:
        _remove(half)


def _beside(out: Path, kind: str) -> Iterator[Path]:
    return out.parent.glob(f".{glob.escape(out.name)}.{kind}-*")


def _remove(entry: Path) -> None:
    with suppress(FileNotFoundError):
        if entry.is_symlink():
            entry.unlink()
        else:
            shutil.rmtree(entry)
