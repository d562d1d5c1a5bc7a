"""Rows that training has hardly seen yet, and inputs that touch them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from slipstream.errors import ConfigError, IndexOutOfRange
from slipstream.kernels.bounds import checked_offsets
from slipstream.restored import copy_into
from slipstream.staleness.compiled import count_up_to, mark_below, on_host

if TYPE_CHECKING:
    from slipstream.data.batch import Inputs

MOST_ROWS = 2**31
"""Of a table: ids are int32."""


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


class TailInputs:
    """Inputs that touch a row of the tail, told from what passes; tables need not be known.

    [ours]. Memory: 1 byte a row, of as many rows as there are up to the highest id that passed.

    Args:
        limit: Lookups with which a row leaves the tail, 1 to 255.

    Raises:
        ConfigError: The limit is out of range.
    """

    def __init__(self, limit: int) -> None:
        TailCounts(0, limit)  # refuses what it refuses
        self.limit = limit
        self._seen: list[TailCounts] = []

    def pass_by(self, inputs: Inputs) -> Tensor:
        """Which inputs touch a row that was looked up fewer than ``limit`` times before, bool [B]; then counts them.

        Args:
            inputs: ids [B, F] and bags; every call has as many of both.

        Raises:
            ConfigError: The inputs before, or those of the state that was taken over, had more features.
            IndexOutOfRange: An id can be no row, or bags are not within their ids.
        """
        size, columns = inputs.ids.shape
        one_each = np.arange(size + 1, dtype=np.int64)
        lookups = [(inputs.ids[:, place].contiguous(), one_each) for place in range(columns)]
        lookups += [(bag.values, checked_offsets(bag.offsets, bag.values.numel(), size).numpy()) for bag in inputs.bags]
        if len(self._seen) > len(lookups):
            raise ConfigError(
                f"the inputs have {len(lookups)} sparse features, those of before had {len(self._seen)}",
                remedy="give all batches the same features, and load the state of a run with them",
            )
        while len(self._seen) < len(lookups):
            self._seen.append(TailCounts(0, self.limit))
        marked = torch.zeros(size, dtype=torch.bool)
        touches = marked.numpy()
        for place, (ids, offsets) in enumerate(lookups):
            if ids.numel():
                low, high = (int(end) for end in ids.aminmax())
                if low < 0 or high >= MOST_ROWS:
                    raise IndexOutOfRange(
                        f"feature {place}: an id is {low if low < 0 else high}",
                        remedy=f"use row numbers, from 0 to {MOST_ROWS - 1}",
                    )
                self._seen[place] = counts = _grown(self._seen[place], high + 1)
                mark_below(counts.seen.numpy(), ids.numpy(), offsets, self.limit, touches)
        for counts, (ids, offsets) in zip(self._seen, lookups, strict=True):
            counts.add(ids[int(offsets[0]) : int(offsets[-1])])
        return marked

    def warm_up(self) -> None:
        """Loads the compiled code."""
        for kind in (np.int32, np.int64):
            ids, offsets = np.zeros(1, dtype=kind), np.array([0, 1], dtype=np.int64)
            mark_below(np.zeros(1, dtype=np.uint8), ids, offsets, self.limit, np.zeros(1, dtype=np.bool_))
            count_up_to(np.zeros(1, dtype=np.uint8), ids, self.limit)

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"seen": [counts.seen for counts in self._seen]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state."""
        self._seen = []
        for seen in state["seen"]:
            counts = _grown(TailCounts(0, self.limit), len(seen))
            copy_into(counts.seen[: len(seen)], seen, "tail")
            self._seen.append(counts)


def _grown(counts: TailCounts, rows: int) -> TailCounts:
    """The same counts for at least so many rows; twice as many as before where there are too few."""
    if rows <= counts.seen.numel():
        return counts
    larger = TailCounts(max(rows, 2 * counts.seen.numel()), counts.limit)
    larger.seen[: counts.seen.numel()] = counts.seen
    return larger
