"""What contestants of the ranking side share: the vectors after each epoch, written while the clock stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from benchmarks.peers.protocol import Point


class Vectors:
    """Writes vectors of users and items after each epoch.

    Args:
        out: Folder.
        pairs: Pairs of an epoch.
    """

    def __init__(self, out: str | Path, pairs: int) -> None:
        self.out, self.pairs = Path(out), pairs
        self.points: list[Point] = []
        self.seconds = 0.0

    def keep(self, seconds: float, users: npt.NDArray, items: npt.NDArray) -> None:
        """Writes an epoch's.

        Args:
            seconds: That the epoch took.
            users: ``[U, D]``; row u is user u of the data.
            items: ``[I, D]``; a score is the product of both.
        """
        self.seconds += seconds
        number = len(self.points)
        files = []
        for name, matrix in (("users", users), ("items", items)):
            file = self.out / f"{name}-{number}.npy"
            np.save(file, np.asarray(matrix, dtype=np.float32))
            files.append(str(file))
        self.points.append(Point((number + 1) * self.pairs, self.seconds, files))
