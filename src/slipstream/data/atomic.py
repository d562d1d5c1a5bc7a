"""Writing so that a reader sees the old or the new, never a half: write beside, fsync, rename."""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slipstream.errors import DataError, OutputError


def fsync_path(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def by_umask(path: Path) -> Iterator[None]:
    """Gives what is written at ``path`` while the block runs the permissions of the user's other new files.

    safetensors makes files for their owner alone.
    """
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)


def partial_name(path: Path) -> Path:
    """A name beside ``path`` that no other process uses."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Hands out a temporary path that becomes ``path`` when the block ends without error.

    The folder is made when it is missing.

    Raises:
        OutputError: The system refuses: a full disk, no permission.
    """
    path = Path(path)
    partial = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            fsync_path(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        fsync_path(path.parent)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(path, error) from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a whole file atomically."""
    with atomic_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes a whole text file (UTF-8) atomically."""
    write_bytes(path, text.encode("utf-8"))


def replace_folder(partial: Path, path: Path) -> None:
    """Renames the finished folder ``partial`` to ``path``; a folder that is already there is replaced.

    The two change places in one step where the system can do that (Linux, most file systems); elsewhere there is a
    moment without a folder of that name.

    Raises:
        DataError: ``path`` is a file.
    """
    if path.exists() and not path.is_dir():
        raise DataError("is a file, not a folder", file=path, remedy="choose another output folder")
    for folder in (partial, *(entry for entry in partial.rglob("*") if entry.is_dir())):
        fsync_path(folder)
    old: Path | None = None
    if path.exists() and _exchange(partial, path):
        fsync_path(path.parent)
        shutil.rmtree(partial)
        return
    if path.exists():
        old = partial_name(path)
        os.rename(path, old)
    try:
        os.rename(partial, path)
    except OSError:
        if old is not None:
            os.rename(old, path)
        raise
    fsync_path(path.parent)
    if old is not None:
        shutil.rmtree(old)


_EXCHANGE = 2
"""``RENAME_EXCHANGE`` of renameat2(2)."""
_AT_FDCWD = -100


def _exchange(first: Path, second: Path) -> bool:
    """Has two paths change places in one step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    return renameat2 is not None and renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
