"""What ``slipstream bench guard`` can be told beside what every benchmark takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slipstream.errors import ConfigError

SAMPLES = {
    "movietweetings": None,
    "globo": 300_000,
    "ml1m": 400_000,
    "gowalla": 400_000,
    "synthetic": 600_000,
    "starved": 300_000,
}
"""The six data sets, and how many of their samples are used, so that twenty runs take minutes; None: all."""


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """What the guard is to hold, where, and how often it is tried.

    Attributes:
        data: Names of ``frontier_data.SETS``.
        tolerances: Relative rises of the log-loss that are accepted, one guard each, each in (0, 1).
        auc_tolerances: Falls of AUC that are accepted, one guard each, each in (0, 0.5).
        seeds: Trainings of each.
        samples: Use only the first so many samples of each data set; None: see ``SAMPLES``.
        policy: What the guard skips by, random or importance.
        folder: Where the public data sets lie that are not part of the project.
        partial: Where the record is kept after each data set.
    """

    data: tuple[str, ...] = tuple(SAMPLES)
    tolerances: tuple[float, ...] = (0.001, 0.02)
    auc_tolerances: tuple[float, ...] = (0.005,)
    seeds: int = 20
    samples: int | None = None
    policy: str = "random"
    folder: Path = Path("../shared/data")
    partial: Path | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: One is out of range.
        """
        if not self.tolerances and not self.auc_tolerances:
            raise ConfigError("there must be a tolerance in (0, 1) or an AUC tolerance in (0, 0.5)")
        if not all(0.0 < tolerance < 1.0 for tolerance in self.tolerances):
            raise ConfigError(f"tolerances must be in (0, 1), got {list(self.tolerances)}")
        if not all(0.0 < tolerance < 0.5 for tolerance in self.auc_tolerances):
            raise ConfigError(f"AUC tolerances must be in (0, 0.5), got {list(self.auc_tolerances)}")
        if not self.data:
            raise ConfigError("name at least one data set")
        if self.policy not in ("random", "importance"):
            raise ConfigError(f"policy must be random or importance, not {self.policy!r}")
        if self.seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {self.seeds}")
        if self.samples is not None and self.samples < 1000:
            raise ConfigError(f"samples must be at least 1,000, got {self.samples}")
