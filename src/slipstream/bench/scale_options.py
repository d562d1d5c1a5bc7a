"""What ``slipstream bench scale`` can be told beside what every benchmark takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slipstream.errors import ConfigError

PARTS = ("rows", "samples", "features", "positives", "overhead", "beyond")
"""What cost is measured against; ``overhead`` is that of loader and policies, ``beyond`` that of tables in files that
are larger than memory: they are written first, which takes minutes."""
USUAL = PARTS[:-1]
"""What is measured unless something else is asked for."""


@dataclass(frozen=True, slots=True)
class ScaleOptions:
    """What to measure.

    Attributes:
        parts: Of ``PARTS``, in any order; ``beyond`` is measured only if it is named.
        long: Train on 10^8 samples too (some minutes and 2 GB of disk), instead of up to 10^7.
        keep: A record of this benchmark whose other parts are taken over, so that a long measurement can be made in
            pieces; it need not exist.
    """

    parts: tuple[str, ...] = USUAL
    long: bool = False
    keep: Path | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: One is out of range.
        """
        wrong = [part for part in self.parts if part not in PARTS]
        if wrong or not self.parts:
            raise ConfigError(f"parts must be among {', '.join(PARTS)}, got {', '.join(self.parts) or 'none'}")
