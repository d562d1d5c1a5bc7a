"""What ``slipstream bench continue`` can be told beside what every benchmark takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slipstream.bench.frontier_options import PUBLIC
from slipstream.errors import ConfigError

CONTINUE_BUDGETS = {"none": 1.0, "random": 0.5, "psse": 0.9, "importance": 0.5}
"""Policies that can be continued here, with their budgets."""


@dataclass(frozen=True, slots=True)
class ContinueOptions:
    """One study of frequent updates.

    Attributes:
        slices: Slices of the log, the first of which everyone is trained on; the last is only scored.
        hours: Length of a slice.
        users: Share of the users whose clicks are used.
        seeds: Trainings of each kind.
        policies: Among ``CONTINUE_BUDGETS``; ``none`` is added.
        folder: Where the Globo clicks lie.
    """

    slices: int = 7
    hours: float = 24.0
    users: float = 0.2
    seeds: int = 3
    policies: tuple[str, ...] = tuple(CONTINUE_BUDGETS)
    folder: Path = PUBLIC

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: One is out of range.
        """
        if self.slices < 3:
            raise ConfigError(f"slices must be at least 3 (a first one, one to learn, one to score), got {self.slices}")
        if not 0.0 < self.hours < float("inf"):
            raise ConfigError(f"hours must be above 0, got {self.hours}")
        if not 0.0 < self.users <= 1.0:
            raise ConfigError(f"users must be in (0, 1], got {self.users}")
        if self.seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {self.seeds}")
        unknown = [name for name in self.policies if name not in CONTINUE_BUDGETS]
        if unknown:
            raise ConfigError(f"unknown policy {unknown[0]!r}", remedy=f"choose among {', '.join(CONTINUE_BUDGETS)}")
