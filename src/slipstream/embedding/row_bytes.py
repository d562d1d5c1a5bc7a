"""What a row takes on a card, and what rows have taken over the bus."""

from __future__ import annotations

from dataclasses import dataclass

SIGNAL_BYTES, TRAIL_BYTES = 2, 20
"""What a measured row takes on the card beside weights, state and gate: its signal; its trail, without moments."""


def row_bytes(dim: int, state_elements: int) -> int:
    """Bytes of the card that a row takes: weights and optimizer state, 4 an element, and 1 for its gate."""
    return 4 * (dim + state_elements) + 1


@dataclass(slots=True)
class BusBytes:
    """Bytes that crossed the bus."""

    weights_in: int = 0
    """Weights of rows that came to the card."""
    state_in: int = 0
    """Optimizer state of rows that came."""
    weights_out: int = 0
    """Weights of rows that left changed."""
    state_out: int = 0
    """Their state."""
    rows_in: int = 0
    """Rows that came."""
    rows_in_shut: int = 0
    """Those of them whose gate was shut in the step for which they came: their weights came alone."""
    rows_read: int = 0
    """Distinct rows of batches, summed over the batches."""
    rows_updated: int = 0
    """Those of them that their step updates."""
    ahead: int = 0
    """Of all that came, what was brought for a batch before its turn."""
    hits: int = 0
    """Distinct rows of batches that were on the card when their batch's turn came."""
    misses: int = 0
    """Those that were not."""

    @property
    def total(self) -> int:
        """Both ways."""
        return self.weights_in + self.state_in + self.weights_out + self.state_out
