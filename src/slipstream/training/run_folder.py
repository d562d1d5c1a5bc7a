"""A run folder in use: by one training at a time, and without what a killed one left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType

from slipstream.data.atomic import fsync_path, remove_partials
from slipstream.errors import ConfigError, OutputError
from slipstream.training.checkpoint.folder import FOLDER, CheckpointFolder

RESULT = "result.json"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
REPLACED = "replaced"
"""Folder, in a run folder, of the finished run that the training at work there is going to replace."""


class RunFolder:
    """Locks a run folder (made if it is missing) while the block runs.

    The lock is on the folder itself (``flock``), so nothing is left of it, however the process ends.

    Args:
        path: The folder.
        keep: Checkpoints to keep.

    Raises:
        ConfigError: It is a file, or another training is at work in it.
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

    def check_over(self) -> None:
        """Whether a training from the start may begin here.

        Raises:
            ConfigError: The folder holds the checkpoints of a training that is not over.
        """
        if self.checkpoints.unfinished():
            raise ConfigError(
                f"{self.path} holds checkpoints of a training that is not over",
                remedy=f"go on with it (--resume {self.path}), choose another folder, or remove {FOLDER}/ in it",
            )

    def begin(self) -> Path | None:
        """Clears the folder for a training from the start.

        A finished run is not lost before there is a new one: its files go into ``replaced/``, whose name says what they
        are; only its checkpoints are removed. So the folder itself never holds the result of another training than its
        configuration and metrics are of, and none while that is not over.

        Returns:
            ``replaced/``, if there was a finished run; else None.

        Raises:
            OutputError: The system refuses.
        """
        replaced = self.path / REPLACED if self.has_result else None
        try:
            if replaced is not None:
                replaced.mkdir(exist_ok=True)
                # The result comes last: a start that is killed in between is done again by the next one.
                for name in (MODEL, METRICS, CONFIG, RESULT):
                    if (self.path / name).exists():
                        os.replace(self.path / name, replaced / name)
                fsync_path(replaced)
                fsync_path(self.path)
        except OSError as error:
            raise OutputError(replaced or self.path, error) from error
        self.checkpoints.clear()
        return replaced

    def complete(self) -> None:
        """Removes what this training has replaced, now that it is over."""
        for name in (RESULT, CONFIG, METRICS, MODEL):
            (self.path / REPLACED / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or it holds something of the user's
            (self.path / REPLACED).rmdir()

    def __enter__(self) -> RunFolder:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file", remedy="choose another run folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise OutputError(self.path, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise ConfigError(
                f"another training is at work in {self.path}", remedy="wait for it, or choose another run folder"
            ) from error
        for folder in (self.path, self.checkpoints.path):
            if folder.is_dir():
                remove_partials(folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # only where nothing was written into it
            self.path.rmdir()
        os.close(self._descriptor)
