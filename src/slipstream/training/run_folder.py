"""A run folder in use: by one training at a time, and without what a killed one left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType

from slipstream.data.atomic import remove_partials
from slipstream.errors import ConfigError, OutputError
from slipstream.training.checkpoint.folder import FOLDER, CheckpointFolder

RESULT = "result.json"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"


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

    def begin(self) -> None:
        """Clears the folder for a training from the start.

        Raises:
            ConfigError: It holds the checkpoints of a training that is not over.
        """
        if self.checkpoints.unfinished():
            raise ConfigError(
                f"{self.path} holds checkpoints of a training that is not over",
                remedy=f"go on with it (--resume {self.path}), choose another folder, or remove {FOLDER}/ in it",
            )
        (self.path / RESULT).unlink(missing_ok=True)
        self.checkpoints.clear()

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
