"""What an update on a GPU counted, left on the device until somebody asks."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slipstream.kernels.types import TableSet, TableState, UpdateCounts


class DeviceCounts(UpdateCounts):
    """As :class:`~slipstream.kernels.types.UpdateCounts`; reading an attribute waits for the device.

    Args:
        counts: int64 [T, 2] on the device: lookups, and those of them that were skipped.
        tables: The tables.
        keys: Sorted keys of the lookups, [N], or None when there were none.
        ranks: Segments begun so far, [N].
        bases: int64 [T + 1], keys of the tables' first rows.
        norms: float64 [N], sum of squares of each segment, or empty.
    """

    def __init__(
        self,
        counts: Tensor,
        tables: Sequence[TableState],
        keys: Tensor | None = None,
        ranks: Tensor | None = None,
        bases: Tensor | None = None,
        norms: Tensor | None = None,
    ) -> None:
        self._counts = counts
        self.totals = tables.totals if isinstance(tables, TableSet) else None
        self._keys, self._ranks, self._bases, self._norms = keys, ranks, bases, norms

    @property
    def lookups(self) -> list[int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Lookups that reached a table."""
        return self._counts[:, 0].tolist()

    @property
    def skipped(self) -> list[int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of them whose row's gate was shut."""
        return self._counts[:, 1].tolist()

    @property
    def rows(self) -> list[int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Distinct rows updated."""
        return [0] * len(self._counts) if self._keys is None else self._bounds().diff().tolist()

    @property
    def squared_norm(self) -> list[float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Sum of squares of the reduced, scaled gradient."""
        return self.device_squared_norm().tolist()

    def device_squared_norm(self) -> Tensor:
        """The same on the device, float64 [T], without waiting."""
        from slipstream.kernels.cuda_update import norms_of_tables

        out = torch.zeros(len(self._counts), dtype=torch.float64, device=self._counts.device)
        if self._norms is not None and self._norms.numel():
            norms_of_tables[(len(out),)](self._norms, self._bounds(), out, BLOCK=1024)
        return out

    def _bounds(self) -> Tensor:
        """int64 [T + 1], the number of each table's first segment."""
        assert self._keys is not None and self._ranks is not None and self._bases is not None
        places = torch.searchsorted(self._keys, self._bases.to(self._keys.dtype))
        before = torch.cat([self._ranks.new_zeros(1), self._ranks])
        return before[places].to(torch.int64)
