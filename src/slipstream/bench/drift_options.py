"""What ``slipstream bench drift`` can be told beside what every benchmark takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slipstream.bench.frontier_options import PUBLIC
from slipstream.errors import ConfigError

DRIFT_SETS = ("globo", "synthetic")


@dataclass(frozen=True, slots=True)
class DriftOptions:
    """One study of drift.

    Attributes:
        sets: ``globo``, ``synthetic`` or both.
        speeds: Drift of the synthetic data: how often each popularity rank changes hands and each row's effect is
            redrawn, per million samples.
        budget: Share that every policy keeps: of the access mass (psse), of the row accesses (saturation), of the hot
            inputs (slipstream).
        seeds: Trainings of each variant.
        samples: Samples of each data set; None: 900,000 of Globo and 400,000 synthetic ones.
        folder: Where the Globo clicks lie.
    """

    sets: tuple[str, ...] = DRIFT_SETS
    speeds: tuple[float, ...] = (0.0, 2.0, 8.0)
    budget: float = 0.7
    seeds: int = 3
    samples: int | None = None
    folder: Path = PUBLIC

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: One is out of range.
        """
        if not self.sets or not all(name in DRIFT_SETS for name in self.sets):
            names = ", ".join(DRIFT_SETS)
            raise ConfigError(f"drift is studied on {names}, got {', '.join(self.sets) or 'nothing'}")
        if not self.speeds or not all(speed >= 0 for speed in self.speeds):
            raise ConfigError(f"speeds must not be negative, at least one, got {list(self.speeds)}")
        if not 0.1 <= self.budget <= 0.9:
            raise ConfigError(f"the budget must be in [0.1, 0.9], which every policy can do, got {self.budget}")
        if self.seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {self.seeds}")
        if self.samples is not None and self.samples < 20_000:
            raise ConfigError(f"samples must be at least 20,000, got {self.samples}")
