"""What a training keeps of its tables beside their weights and the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.embedding import tables
from slipstream.embedding.table import Table
from slipstream.errors import ConfigError
from slipstream.restored import MOST, copy_into, whole_number


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
        table.lookups, table.skipped = whole_number(saved, "lookups"), whole_number(saved, "skipped")
        for kept, own in (("gate", table.open_gate), ("signal", table.measure), ("trail", table.open_trail)):
            if saved[kept] is not None:
                copy_into(own(), saved[kept], f"{kept} of {name}")


_NEEDED: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.Adam: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),  # a kind of Adam in newer versions alone
    torch.optim.SparseAdam: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.Adagrad: ("step", "sum"),
}
"""What torch's optimizers take for given where a parameter has a state at all."""
_OF_ROWS = ("row_sum", "last_step")
"""States of ours with one number a row."""


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Whether a state that an optimizer has just taken over is that of its parameters: torch does not look.

    Raises:
        ConfigError: A part is missing, or has another shape or type.
    """
    needed = next((names for kind, names in _NEEDED.items() if isinstance(optimizer, kind)), ())
    for parameter, kept in optimizer.state.items():
        missing = [name for name in needed if name not in kept and not (name == "sum" and "row_sum" in kept)]
        wrong = [name for name, value in kept.items() if not _fits(name, value, parameter)]
        if kept and (missing or wrong):
            what = f"{missing[0]} is missing" if missing else f"{wrong[0]} has another shape or type"
            raise ConfigError(f"the optimizer's state is of other parameters: {what}")


def _fits(name: str, value: Any, parameter: Tensor) -> bool:
    if name == "step":
        steps: Any = float(value) if isinstance(value, Tensor) and value.dim() == 0 else value
        return type(steps) in (int, float) and 0 <= steps <= MOST and steps == int(steps)
    if value is None:
        return name == "momentum_buffer"  # torch's, before the first step
    if not isinstance(value, Tensor) or value.is_floating_point() == (name == "last_step"):
        return False
    return value.shape == (parameter.shape[:1] if name in _OF_ROWS else parameter.shape)


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
