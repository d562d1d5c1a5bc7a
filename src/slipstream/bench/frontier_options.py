"""What ``slipstream bench frontier`` can be told beside what every benchmark takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slipstream.errors import ConfigError

PUBLIC = Path("../shared/data")
"""Where the public data sets lie that are not part of the project, seen from its root."""
CONTROLS = ("none", "random")
"""Policies of every frontier, named or not."""
LABEL_ALONE = "label alone"
"""Importance by the label alone, without a scout: unbiased negative down-sampling, the control of importance."""


@dataclass(frozen=True, slots=True)
class FrontierOptions:
    """One frontier.

    Attributes:
        data: One of ``frontier_data.SETS``, or the path of a data set.
        config: YAML configuration of the training, for a data set named by its path.
        folder: Where the public data sets lie that are not part of the project.
        policies: Names of policies; full training and random skipping are added. Empty: every policy there is.
        budgets: Shares that are kept, each in (0, 1].
        seeds: Trainings of each point.
        samples: Use only the first so many samples; None: as the data set has it.
        mode: holdout or prequential; None: as the data set has it.
        model: One of ``frontier_data.MODELS``; None: the data set's own.
        embedding_decays: Courses of the tables' rate that are tried (``ScheduleConfig.embedding``).
        partial: Where the record is kept after each seed, so that a long measurement that is broken off is not lost.
        tune: Whether rates are tuned; if not, every point trains at the data set's own.
    """

    data: str = "movietweetings"
    config: Path | None = None
    folder: Path = PUBLIC
    policies: tuple[str, ...] = ()
    budgets: tuple[float, ...] = (0.25, 0.5, 0.7)
    seeds: int = 3
    samples: int | None = None
    mode: Literal["holdout", "prequential"] | None = None
    embedding_decays: tuple[Literal["constant", "linear", "cosine"], ...] = ("constant",)
    tune: bool = True
    partial: Path | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: One is out of range.
        """
        if not self.budgets or not all(0.0 < budget <= 1.0 for budget in self.budgets):
            raise ConfigError(f"budgets must be in (0, 1], at least one, got {list(self.budgets)}")
        if self.seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {self.seeds}")
        if self.samples is not None and self.samples < 1000:
            raise ConfigError(f"samples must be at least 1,000, got {self.samples}")
        if self.mode not in (None, "holdout", "prequential"):
            raise ConfigError(f"mode must be holdout or prequential, not {self.mode!r}")
        decays = ("constant", "linear", "cosine")
        if not self.embedding_decays or not all(decay in decays for decay in self.embedding_decays):
            raise ConfigError(
                f"embedding decays must be among {', '.join(decays)}, got {', '.join(self.embedding_decays) or 'none'}"
            )
