"""A table in host memory whose rows in use are on a card, as policies and reports see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slipstream.embedding.row_cache import RowCache
from slipstream.embedding.table import OPEN
from slipstream.errors import ConfigError


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
        measure: Has updates on the card measure the rows of all tables, and their states come and go with the rows.
    """

    def __init__(self, name: str, cache: RowCache, number: int, measure: Callable[[], None]) -> None:
        self.name = name
        self.listeners: list[Callable[[Any, Tensor], None]] = []
        self.lookups = self.skipped = 0
        self._cache, self._measure = cache, measure
        self._rows = slice(int(cache.bases[number]), int(cache.bases[number + 1]))

    @property
    def num_rows(self) -> int:
        """R."""
        return self._rows.stop - self._rows.start

    @property
    def weight(self) -> Tensor:
        """float32 [R, D] in host memory, rows on the card brought up to date."""
        self._cache.update("weight")
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

    def measure(self) -> Tensor:
        """The signal in host memory, uint16 [R], brought up to date; measured from now on, all 0 at first."""
        self._measure()
        self._cache.update("signal")
        return self._cache.state("signal")[self._rows].view(torch.uint16)

    @property
    def trail(self) -> Tensor | None:
        """Where rows have come from, float32 [R, 5] in host memory, brought up to date; None with moments."""
        if "trail" not in self._cache.state_names:
            return None
        self._cache.update("trail")
        return self._cache.state("trail")[self._rows]

    def open_trail(self) -> Tensor:
        """The trail.

        Raises:
            ConfigError: The optimizer has moments, so none is kept.
        """
        trail = self.trail
        if trail is None:
            raise ConfigError(f"the optimizer of table {self.name!r} keeps no trail", remedy="measure() its moments")
        return trail
