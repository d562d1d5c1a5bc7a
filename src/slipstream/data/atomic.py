"""Writing so that a reader sees the old or the new, never a half: write beside, fsync, rename."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
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


def remove_partials(folder: Path, own: str) -> None:
    """Removes what a process that was killed has left half-written or half-removed in a folder.

    Others may be at work there, a preparation say: theirs stays, and a link, which nobody makes.

    Args:
        folder: Where to look.
        own: Pattern of the names that the partial ones would have had.
    """
    for entry in folder.glob(".*.partial-*"):
        if entry.is_symlink() or not re.fullmatch(own, entry.name[1:].rpartition(".partial-")[0]):
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Hands out a temporary path that becomes ``path`` when the block ends without error.

    The folder is made when it is missing. A link stays, and the file it leads to is replaced. Pipes and devices stay,
    too: what was written goes into them.

    Raises:
        OutputError: The system refuses: a full disk, no permission.
    """
    path = Path(path)
    try:
        descriptor = _descriptor(path)
        if descriptor is not None or _takes_a_stream(path):
            with tempfile.TemporaryDirectory(prefix="slipstream-") as folder:
                partial = Path(folder) / path.name
                yield partial
                _pour(partial, path if descriptor is None else descriptor)
            return
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_name(target)
        try:
            yield partial
            fsync_path(partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        fsync_path(target.parent)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(path, error) from error


def _descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path leads to: 1 for ``/dev/stdout``; None: to none.

    It is written to as it is. Opened by its path, a file that it was redirected to would be written to from the start.
    """
    own = os.path.realpath("/proc/self/fd")
    for _ in range(40):  # as many links as Linux follows
        folder = os.path.realpath(path.parent)
        if folder == own and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            break
        path = Path(folder, os.readlink(path))
    return None


def _takes_a_stream(path: Path) -> bool:
    """Whether a pipe or a character device is there, which no file should take the place of.

    Raises:
        OSError: It is a disk or a socket, or links lead in a circle.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise OSError("is a disk or a socket")
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _pour(file: Path, into: Path | int) -> None:
    """Writes a file's bytes into what is there already: a path, or a descriptor, which stays open."""
    sys.stdout.flush()  # what was printed before comes before, should it be the same
    with file.open("rb") as source, open(into, "wb", closefd=not isinstance(into, int)) as target:
        shutil.copyfileobj(source, target)


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
