"""A table in host memory whose rows in use are on a card, as policies and reports see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slipstream.embedding.row_cache import RowCache
from slipstream.embedding.table import OPEN


class HostTable:
    """One table of a cached collection, as policies and reports see it.

    Attributes:
        name: Its name.
        listeners: Called with (table, ids) of each batch's lookups, when the batch is placed.
        lookups: Lookups of batches placed for training.
        skipped: Those of them whose row's gate was shut.

    Args:
        name: Its name.
        cache: The rows of all tables of the collection.
        number: Its place among them.
    """

    def __init__(self, name: str, cache: RowCache, number: int) -> None:
        self.name = name
        self.listeners: list[Callable[[Any, Tensor], None]] = []
        self.lookups = self.skipped = 0
        self._cache = cache
        self._rows = slice(int(cache.bases[number]), int(cache.bases[number + 1]))

    @property
    def num_rows(self) -> int:
        """R."""
        return self._rows.stop - self._rows.start

    @property
    def weight(self) -> Tensor:
        """float32 [R, D] in host memory, rows on the card brought up to date."""
        self._cache.flush()
        return self._cache.host_weight[self._rows]

    @property
    def gate(self) -> Tensor | None:
        """uint8 [R], or None while every row of all tables is open."""
        return None if self._cache.gate is None else self._cache.gate[self._rows]

    def open_gate(self) -> Tensor:
        """The gate, made (all rows open) if there is none yet."""
        if self._cache.gate is None:
            self._cache.gate = torch.full((len(self._cache.host_weight),), OPEN, dtype=torch.uint8)
        return self._cache.gate[self._rows]
