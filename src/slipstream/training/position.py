"""How long a training has taken, what for, and where it stands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from slipstream.errors import ConfigError
from slipstream.restored import MOST, finite_number

_MOST_STEPS = 10**12 - 1
"""Names of checkpoints have twelve digits."""


class Stopwatch:
    """Adds up the time between :meth:`start` and :meth:`stop`."""

    def __init__(self) -> None:
        self._before = self._lap = 0.0
        self._started: float | None = None
        self.laps: dict[str, float] = {}
        """Seconds by phase (input, policy, forward, backward, update); the rest lies between steps."""

    @property
    def seconds(self) -> float:
        """So far, a running measurement included."""
        return self._before + (0.0 if self._started is None else time.perf_counter() - self._started)

    def start(self) -> None:
        """Goes on."""
        self._started = self._lap = time.perf_counter()

    def lap(self, phase: str | None = None) -> None:
        """The time since the last lap, or since the start, went into a phase; None: into none of them."""
        now = time.perf_counter()
        if phase is not None:
            self.laps[phase] = self.laps.get(phase, 0.0) + now - self._lap
        self._lap = now

    def stop(self) -> None:
        """Pauses."""
        self._before, self._started = self.seconds, None

    def set(self, seconds: float, laps: Mapping[str, float]) -> None:
        """Pauses at times measured before.

        Raises:
            ConfigError: The time of a phase is not a finite number.
        """
        self._before, self._started = seconds, None
        self.laps = {phase: finite_number(laps, phase, of="phase ") for phase in laps}


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

    def check(self, epochs: int, samples: int) -> None:
        """Whether a training of so many epochs and samples can stand here.

        Raises:
            ConfigError: It cannot.
        """
        limits = ((self.epoch, MOST), (self.samples, MOST), (self.steps, _MOST_STEPS), (self.predicted, MOST))
        counted = all(type(number) is int and 0 <= number <= most for number, most in limits)
        if not counted or type(self.scoring) is not bool:
            raise ConfigError(f"a training cannot stand at {self}")
        if self.epoch > epochs or max(self.samples, self.predicted) > samples:
            raise ConfigError(f"a training of {epochs} epochs and {samples} samples cannot stand at {self}")
