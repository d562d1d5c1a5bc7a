"""What contestants of the ranking side share: the vectors after each epoch, written while the clock stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from benchmarks.peers.protocol import Point

EVERY = 10
"""Epochs between two that are written, once so many have passed."""


class Vectors:
    """Writes vectors of users and items after each epoch.

    Args:
        out: Folder.
        pairs: Pairs of an epoch.
        epochs: Epochs that there will be.
    """

    def __init__(self, out: str | Path, pairs: int, epochs: int) -> None:
        self.out, self.pairs, self.epochs = Path(out), pairs, epochs
        self.epoch = 0
        self.points: list[Point] = []
        self.seconds = 0.0

    def keep(self, seconds: float, users: npt.NDArray, items: npt.NDArray) -> None:
        """Writes an epoch's; after the first ten those of every tenth, and the last.

        Args:
            seconds: That the epoch took.
            users: ``[U, D]``; row u is user u of the data.
            items: ``[I, D]``; a score is the product of both.
        """
        self.seconds += seconds
        self.epoch += 1
        if self.epoch > EVERY and self.epoch % EVERY and self.epoch < self.epochs:
            return
        number = self.epoch
        files = []
        for name, matrix in (("users", users), ("items", items)):
            file = self.out / f"{name}-{number}.npy"
            np.save(file, np.asarray(matrix, dtype=np.float32))
            files.append(str(file))
        self.points.append(Point(number * self.pairs, self.seconds, files))
