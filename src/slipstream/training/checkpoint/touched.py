"""Which rows of which tables training has touched since the last full checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from slipstream.embedding.table import Table
from slipstream.staleness.compiled import count_up_to


class Touched:
    """Marks the rows that backward passes look up: the only ones that a lazy optimizer can have changed.

    Memory: 1 byte a row.

    Args:
        tables: By name.
        listen: Whether to hear of them by itself; else whoever knows calls :meth:`mark`.
    """

    def __init__(self, tables: Mapping[str, Table], *, listen: bool = True) -> None:
        self._tables = dict(tables)
        self.marks = {name: torch.zeros(table.num_rows, dtype=torch.uint8) for name, table in tables.items()}
        """uint8 [R] by table: 1 for touched rows."""
        self._marks_of = {id(table): self.marks[name] for name, table in tables.items()}
        self._names: dict[int, str] = {}
        self._listens = False
        if listen:
            self.attach()

    def mark(self, table: Table, ids: Tensor) -> None:
        """Rows (int32 or int64, any shape) of a table are touched."""
        count_up_to(self._marks_of[id(table)].numpy(), ids.reshape(-1).contiguous().numpy(), 1)

    def follow(self, tensors: Mapping[str, Iterable[Tensor]]) -> None:
        """Says of which tensors [R, …] the touched rows of a table are all that can have changed, by table."""
        self._names = {tensor.data_ptr(): name for name, own in tensors.items() for tensor in own}

    def name_of(self, tensor: Tensor) -> str | None:
        """The table whose rows a tensor holds, if it was followed."""
        return self._names.get(tensor.data_ptr()) if tensor.numel() else None

    def marks_of(self, tensor: Tensor) -> Tensor | None:
        """uint8 [R] of a tensor that was followed."""
        name = self.name_of(tensor)
        return None if name is None or len(tensor) != len(self.marks[name]) else self.marks[name]

    def clear(self) -> None:
        """All rows count as untouched."""
        for marks in self.marks.values():
            marks.zero_()

    def attach(self) -> None:
        """Watches."""
        self._listens = True
        for table in self._tables.values():
            table.listeners.append(self.mark)

    def detach(self) -> None:
        """Stops watching."""
        if self._listens:
            for table in self._tables.values():
                table.listeners.remove(self.mark)
            self._listens = False
