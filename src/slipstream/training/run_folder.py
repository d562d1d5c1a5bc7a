"""A run folder in use: by one training at a time, and without what a killed one left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path
from types import TracebackType

from slipstream.data.atomic import fsync_path, remove_partials
from slipstream.errors import ConfigError, DataError, OutputError
from slipstream.training.checkpoint.folder import FOLDER, CheckpointFolder
from slipstream.training.checkpoint.manifest import MANIFEST, NAME
from slipstream.training.config import TrainConfig
from slipstream.training.result import Result

RESULT = "result.json"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
REPLACED = ".replaced"
"""Folder, in a run folder, of the finished run that the training at work there is going to replace."""
PUT_AWAY = "put_away.txt"
"""Says, in ``REPLACED``, that a training made it: what is to be removed at its end, and a user's folder never is."""
FILES = (MODEL, METRICS, CONFIG, RESULT)
"""Of a finished run; the result says that it is one, so it is moved last and removed first."""
REPORT = "report.html"
"""The page that ``slipstream report`` makes of a run, which is no longer true of the one that replaces it."""
_REPLACED_FILES = (REPORT, *FILES)
_FIRST_LINE = b'{"event": "start", '
"""How ``metrics.jsonl`` begins in every version: it is the first file that a training writes, and begins empty."""
_PATHS = ("data", "cache", "columns", "continue_from", "out")
"""Settings that are paths; configuration and checkpoints hold them, in UTF-8."""
_OWN = "|".join(map(re.escape, (*FILES, FOLDER)))
"""Names of what a training writes, or removes, beside its checkpoints: a pattern."""


class RunFolder:
    """Locks a run folder (made if it is missing) while the block runs.

    The lock is on the folder itself (``flock``), so nothing is left of it, however the process ends.

    Args:
        path: The folder.
        keep: Checkpoints to keep.

    Raises:
        ConfigError: It is a file, another training is at work in it, or its checkpoints are a link that leads nowhere.
        OutputError: It cannot be made.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.checkpoints = CheckpointFolder(path, keep)
        self._descriptor = -1

    @property
    def has_result(self) -> bool:
        """Whether a training was finished here."""
        return (self.path / RESULT).is_file()

    @property
    def is_whole(self) -> bool:
        """Whether a finished run lies here, of which no later training has put anything away."""
        return all((self.path / name).is_file() for name in (MODEL, CONFIG, RESULT))

    @property
    def is_being_replaced(self) -> bool:
        """Whether a training has begun, or not quite ended, to replace the finished run here."""
        return (self.path / REPLACED / PUT_AWAY).is_file()

    def check_ours(self) -> None:
        """Whether what a training writes over here is of a training: a project's own ``config.yaml`` is not ours.

        Raises:
            ConfigError: The folder holds a file of such a name, and nothing says that a training has made it.
        """
        found = [name for name in FILES if os.path.lexists(self.path / name)]
        if found and not self._is_ours():
            raise ConfigError(
                f"{self.path} holds {found[0]}, which would be written over, and no training of slipstream's",
                remedy="choose another run folder, or move that file elsewhere",
            )

    def _is_ours(self) -> bool:
        """Whether a training was at work here, in whatever moment it was killed.

        The metrics come before every other file and go after a marker is in ``.replaced/``; result and checkpoints are
        for folders that somebody has taken the metrics out of.
        """
        saved = (self.checkpoints.path / name / MANIFEST for name in self.checkpoints.names())
        if self.is_being_replaced or any(manifest.is_file() for manifest in saved):
            return True
        metrics, result = self.path / METRICS, self.path / RESULT
        try:
            if metrics.is_file():
                with metrics.open("rb") as file:
                    if _FIRST_LINE.startswith(file.read(len(_FIRST_LINE))):
                        return True
            return result.is_file() and bool(Result.load(result))
        except (DataError, OSError):
            return False

    def drop_links(self) -> None:
        """Removes links, pipes and the like where a training will write: it writes nothing outside its folder.

        Raises:
            OutputError: The system refuses.
        """
        for path in (self.path / name for name in FILES):
            try:
                if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
                    path.unlink()
            except OSError as error:
                raise OutputError(path, error) from error

    def check_over(self) -> None:
        """Whether a training from the start may begin here.

        Raises:
            ConfigError: The folder holds the checkpoints of a training that is not over.
        """
        if self.checkpoints.names() and not self.has_result:
            raise ConfigError(
                f"{self.path} holds checkpoints of a training that is not over",
                remedy=f"go on with it (--resume {self.path}), choose another folder, or remove {FOLDER}/ in it",
            )

    @property
    def replaced(self) -> Path | None:
        """Where the finished run lies that the training at work replaces; None: there was none."""
        old = self.path / REPLACED
        return old if (old / PUT_AWAY).is_file() and (old / RESULT).is_file() else None

    def begin(self) -> None:
        """Clears the folder for a training from the start.

        A finished run is not lost before there is a new one: its files go into ``.replaced/``; only its checkpoints are
        removed. So the folder itself never holds the result of another training than its configuration and metrics are
        of, and none while that is not over. A start that is killed in between is done again by the next one.

        Raises:
            ConfigError: ``.replaced/`` holds a run that no training has put there.
            OutputError: The system refuses.
        """
        old = self.path / REPLACED
        try:
            if self.has_result and not (old / PUT_AWAY).is_file() and any((old / name).exists() for name in FILES):
                raise ConfigError(f"{old} holds a run that no training has put there", remedy="move it elsewhere")
            if self.has_result:
                old.mkdir(exist_ok=True)
                (old / PUT_AWAY).write_text("The finished run that a training replaces; gone when that is complete.\n")
            # Before the result: with none beside it, a checkpoint of the old run would be gone on with.
            self.checkpoints.clear()
            if self.has_result:
                for name in _REPLACED_FILES:
                    if (self.path / name).exists():
                        os.replace(self.path / name, old / name)
                fsync_path(old)
                fsync_path(self.path)
        except OSError as error:
            raise OutputError(old, error) from error

    def complete(self) -> None:
        """Removes what this training has replaced, now that it is over, and nothing else.

        Raises:
            OutputError: The system refuses.
        """
        old = self.path / REPLACED
        try:
            if (old / PUT_AWAY).is_file():
                for name in (*reversed(_REPLACED_FILES), PUT_AWAY):
                    (old / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not there, or it holds something of the user's
                old.rmdir()
        except OSError as error:
            raise OutputError(old, error) from error

    def __enter__(self) -> RunFolder:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file", remedy="choose another run folder")
        try:
            self._descriptor = self._locked()
        except BlockingIOError as error:
            raise ConfigError(
                f"another training is at work in {self.path}", remedy="wait for it, or choose another run folder"
            ) from error
        except OSError as error:
            raise OutputError(self.path, error) from error
        checkpoints = self.checkpoints.path
        if checkpoints.is_symlink() and not checkpoints.is_dir():
            os.close(self._descriptor)
            raise ConfigError(
                f"{checkpoints} is a link that leads to no folder", remedy="make that folder, or remove the link"
            )
        for folder, own in ((self.path, _OWN), (checkpoints, NAME)):
            if folder.is_dir():
                remove_partials(folder, own)
        return self

    def _locked(self) -> int:
        """The folder's descriptor, locked.

        A training that wrote nothing removes its folder when it ends, so what was locked may have lost the name.
        """
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            try:
                _lock(descriptor)
                if os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                    return descriptor
            except FileNotFoundError:
                pass
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # only where nothing was written into it
            self.path.rmdir()
        os.close(self._descriptor)


def check_paths(config: TrainConfig) -> None:
    """Whether a training's paths can be written into its run folder.

    Raises:
        ConfigError: The name of one is not UTF-8.
    """
    for setting in _PATHS if config.out is not None else ():
        path = getattr(config, setting)
        if path is not None:
            _check_text(path, setting)


def _check_text(path: Path, setting: str) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        said = str(path).encode(errors="backslashreplace").decode()
        raise ConfigError(f"{setting} {said}: its name is not UTF-8", remedy="rename it, or choose another") from error


def _lock(descriptor: int) -> None:
    """Locks a folder; a `watch` that asks whether anybody has it takes no more than a moment."""
    for _ in range(10):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.02)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
