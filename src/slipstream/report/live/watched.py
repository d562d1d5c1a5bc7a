"""A run folder that is looked at again and again."""

from __future__ import annotations

from pathlib import Path

from slipstream.errors import DataError
from slipstream.report.log import Follower
from slipstream.report.runs import METRICS, RESULT, Run, open_run

REMEDY = "name a folder given to `slipstream train --out`"
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
        return news

    def run(self) -> Run:
        """The run as it was at the last look; empty while there is nothing in the folder.

        Raises:
            DataError: A file of it cannot be read.
        """
        if not any((self.folder / name).exists() for name in ("config.yaml", METRICS, RESULT)):
            return Run(self.folder.name, {}, log=self._follower.log)
        return open_run(self.folder, self._follower.log)
