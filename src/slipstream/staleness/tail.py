"""Rows that training has hardly seen yet."""

from __future__ import annotations

import torch
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.staleness.compiled import count_up_to, on_host


class TailCounts:
    """Lookups of each row of a table, counted up to a limit: a row below it belongs to the tail.

    [ours]. Memory: 1 byte a row.

    Args:
        num_rows: R.
        limit: Lookups with which a row leaves the tail, 1 to 255.

    Raises:
        ConfigError: The limit is out of range.
    """

    def __init__(self, num_rows: int, limit: int) -> None:
        if not 1 <= limit <= 255:
            raise ConfigError(f"the limit must be in [1, 255], got {limit}")
        self.limit = limit
        self.seen = torch.zeros(num_rows, dtype=torch.uint8)
        """uint8 [R], lookups, ``limit`` at most."""

    def add(self, ids: Tensor) -> None:
        """Counts lookups: ids int32 or int64, any shape, repeats allowed; those on a GPU are waited for."""
        count_up_to(self.seen.numpy(), on_host(ids.reshape(-1).contiguous()), self.limit)

    def protect(self, gate: Tensor, kept: Tensor) -> int:
        """Opens the gates (uint8 [R]) of the tail; returns how many of its rows are not in ``kept`` (bool [R])."""
        tail = self.seen < self.limit
        gate.masked_fill_(tail.to(gate.device), 255)
        return int(torch.count_nonzero(tail & ~kept))
