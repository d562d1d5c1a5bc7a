"""How long a training has taken, and where it stands."""

from __future__ import annotations

import time
from dataclasses import dataclass


class Stopwatch:
    """Adds up the time between :meth:`start` and :meth:`stop`."""

    def __init__(self) -> None:
        self._before = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """So far, a running measurement included."""
        return self._before + (0.0 if self._started is None else time.perf_counter() - self._started)

    def start(self) -> None:
        """Goes on."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Pauses."""
        self._before, self._started = self.seconds, None

    def set(self, seconds: float) -> None:
        """Pauses at a time measured before."""
        self._before, self._started = seconds, None


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training stands: between two batches of the data, or about to predict."""

    epoch: int
    """Epochs finished."""
    samples: int
    """Samples of the data that have passed, all epochs together."""
    steps: int
    """Optimizer steps."""
    predicted: int
    """prequential: samples predicted so far, from the first on."""
    scoring: bool
    """holdout: the epoch's training is over, and the samples held out are to be scored next."""
