"""What gates skipped since a moment, from the counters of tables, which count over their whole life."""

from __future__ import annotations

from collections.abc import Collection

from slipstream.policies.base import Gated


class RowUpdates:
    """Row lookups of trained inputs, and those of them whose update a gate skipped, from now on.

    Args:
        tables: Those that are counted.
    """

    def __init__(self, tables: Collection[Gated]) -> None:
        self._tables = tables
        self.set(0, 0)

    def set(self, lookups: int, skipped: int) -> None:
        """Counts on from these numbers, whatever the tables have counted."""
        ever, ever_skipped = self._ever()
        self._zero = ever - lookups, ever_skipped - skipped

    def __call__(self) -> tuple[int, int]:
        """Lookups, and those skipped."""
        ever, ever_skipped = self._ever()
        return ever - self._zero[0], ever_skipped - self._zero[1]

    def _ever(self) -> tuple[int, int]:
        return sum(table.lookups for table in self._tables), sum(table.skipped for table in self._tables)
