"""What a training keeps of its tables beside their weights and the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.embedding import tables
from slipstream.embedding.table import Table


def tables_state(model: nn.Module) -> dict[str, Any]:
    """Gates, signals, trails and counts of all tables of ours, by parameter name."""
    return {
        name: {
            "gate": table.gate,
            "signal": table.signal,
            "trail": table.trail,
            "lookups": table.lookups,
            "skipped": table.skipped,
        }
        for name, table in tables(model).items()
    }


def load_tables(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Takes over what :func:`tables_state` gave, into tensors of the tables' own."""
    for name, table in tables(model).items():
        saved = state[name]
        table.lookups, table.skipped = int(saved["lookups"]), int(saved["skipped"])
        if saved["gate"] is not None:
            table.open_gate().copy_(saved["gate"])
        if saved["signal"] is not None:
            table.measure().copy_(saved["signal"])
        if saved["trail"] is not None:
            table.open_trail().copy_(saved["trail"])


def tensors_of_rows(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, list[Tensor]]:
    """By table, the tensors [R, …] of which only updates change anything, and only in the rows that they update."""
    return {name: list(_of_table(table, optimizers)) for name, table in tables(model).items()}


def _of_table(table: Table, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[Tensor]:
    yield table.weight.detach()
    for optimizer in optimizers:
        for value in optimizer.state.get(table.weight, {}).values():
            if isinstance(value, Tensor) and value.dim() and len(value) == table.num_rows:
                yield value
    for tensor in (table.signal, table.trail):
        if tensor is not None:
            yield tensor
