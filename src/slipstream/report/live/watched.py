"""A run folder that is looked at again and again."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from slipstream.errors import DataError
from slipstream.report.log import Follower
from slipstream.report.runs import METRICS, RESULT, Run, open_run

REMEDY = "name a folder given to `slipstream train --out`"
PATIENCE = 30.0
"""Seconds without news after which it is asked whether a training is at work."""
_OURS = ("config.yaml", METRICS, RESULT, "checkpoints", "model.safetensors", ".replaced")


class Watched:
    """Follows a training through the files of its run folder, which may come later.

    Args:
        folder: The run folder.

    Raises:
        DataError: It is a file, or a folder that holds other things.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._follower = Follower(self.folder / METRICS)
        self._result: tuple[int, int] | None = None
        self._ask, self._told = 0.0, False
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError("is a file, and no run folder", file=self.folder, remedy=REMEDY)
        if self.folder.is_dir() and not self._is_run() and any(self.folder.iterdir()):
            raise DataError("is no run folder: it holds other things", file=self.folder, remedy=REMEDY)

    def _is_run(self) -> bool:
        return any((self.folder / name).exists() for name in _OURS)

    @property
    def finished(self) -> bool:
        """Whether the training is over."""
        return self._result is not None

    def look(self) -> bool:
        """See what is new.

        Returns:
            Whether anything is.

        Raises:
            DataError: A file cannot be read.
        """
        news = self._follower.read()
        try:
            status = (self.folder / RESULT).stat()
            result = (status.st_ino, status.st_mtime_ns)
        except FileNotFoundError:
            result = None
        news, self._result = news or result != self._result, result
        if news:
            self._ask = time.monotonic() + PATIENCE
        return news

    def deserted(self) -> str:
        """Says once that no training is at work in the folder, asked now and then while there is no news; else ""."""
        if self.finished or time.monotonic() < self._ask or not self.folder.is_dir() or not self._is_run():
            return ""
        self._ask = time.monotonic() + PATIENCE
        try:
            descriptor = os.open(self.folder, os.O_RDONLY)
        except OSError:
            return ""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # a training has it alone
        except OSError:
            self._told = False
            return ""
        finally:
            os.close(descriptor)
        told, self._told = self._told, True
        resume = f"`slipstream train --resume {self.folder}` goes on"
        return "" if told else f"{self.folder}: no training of this machine is at work; {resume}, and is followed here"

    def run(self) -> Run:
        """The run as it was at the last look; empty while there is nothing in the folder.

        Raises:
            DataError: A file of it cannot be read.
        """
        if not any((self.folder / name).exists() for name in ("config.yaml", METRICS, RESULT)):
            return Run(self.folder.name, {}, log=self._follower.log)
        return open_run(self.folder, self._follower.log)
