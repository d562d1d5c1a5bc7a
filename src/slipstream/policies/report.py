"""What a Skipper did, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SkipReport:
    """What was skipped. ``print`` it for one readable line."""

    policy: str
    """Name of the policy."""
    inputs_seen: int
    """Inputs pushed."""
    inputs_kept: int
    """Inputs trained on, or waiting for a full batch."""
    steps: int
    """Batches handed out."""
    share_of_inputs_trained: float
    """Inputs kept ÷ inputs pushed, in [0, 1]."""
    share_of_row_updates_skipped: float
    """Row lookups of trained inputs whose update was skipped ÷ all of them, in [0, 1]."""
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    """The policy's own numbers."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        text = (
            f"policy {self.policy}: trained {self.inputs_kept:,} of {self.inputs_seen:,} inputs"
            f" ({self.share_of_inputs_trained:.1%}) in {self.steps:,} steps,"
            f" skipped {self.share_of_row_updates_skipped:.1%} of their row updates"
        )
        details = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.details.items()
        )
        return f"{text} ({details})" if details else text
