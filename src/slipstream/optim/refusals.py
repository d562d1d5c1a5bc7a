"""What our optimizers refuse before anything has moved, since a kernel could not honour it or would do it wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from slipstream.embedding.table import OPEN, Table
from slipstream.errors import ConfigError, UnsupportedOption


def refuse_options_of_torch(optimizer: str, group: Mapping[str, Any]) -> None:
    """Raise UnsupportedOption for an option of torch's that the kernels do not have.

    Args:
        optimizer: The class's name.
        group: A parameter group that holds tables.
    """
    for name in ("amsgrad", "maximize", "nesterov", "dampening", "differentiable", "capturable"):
        if group.get(name):
            raise UnsupportedOption(
                f"{optimizer}: {name}={group[name]!r} is not supported for tables",
                remedy='put the tables in a parameter group without it, or use untouched="dense"',
            )


def refuse_unknown_options(group: Mapping[str, Any]) -> None:
    """Raise ConfigError for a value of our options that is none of theirs."""
    for name, allowed in (("untouched", ("lazy", "dense")), ("on_skip", ("freeze", "catch_up"))):
        if group.get(name, allowed[0]) not in allowed:
            raise ConfigError(f"{name}={group[name]!r} is not an option", remedy=f"use one of {allowed}")


def refuse_dense(table: Table) -> None:
    """Raise UnsupportedOption where a dense gradient would pass a table's gates, or what is drawn of its lookups."""
    if table.drawn_by() is not None:
        raise UnsupportedOption(
            f"lookups of table {table.name!r} are drawn (policy row_importance), and its gradient is dense",
            remedy='it needs untouched="lazy" and a weight that is used only for lookups',
        )
    if table.gate is not None and bool((table.gate != OPEN).any()):
        raise UnsupportedOption(
            f"table {table.name!r} has gates, and its gradient is dense",
            remedy='gates need untouched="lazy" and a weight that is used only for lookups',
        )


def refuse_gate(table: Table) -> None:
    """Raise UnsupportedOption unless a table's gate fits it: one may have been put there past ``set_gate``."""
    gate, rows = table.gate, table.weight.shape[:1]
    if gate is None or (gate.dtype == torch.uint8 and gate.shape == rows and gate.device == table.weight.device):
        return
    raise UnsupportedOption(
        f"gate of table {table.name!r} is {gate.dtype} {tuple(gate.shape)} on {gate.device}, not torch.uint8 "
        f"{tuple(rows)} on {table.weight.device}",
        remedy="hand it to table.set_gate",
    )


def refuse_state(table: Table, state: Mapping[str, Any], names: tuple[str, ...], *, rowwise: bool) -> None:
    """Raise UnsupportedOption unless a table's state fits it: one may have been loaded, or put there by hand.

    Args:
        table: The table.
        state: Its state in the optimizer.
        names: Of the tensors in it that are [R, D].
        rowwise: They are [R] instead.
    """
    whole, rows = tuple(table.weight.shape), tuple(table.weight.shape[:1])
    shapes = dict.fromkeys(names, rows if rowwise else whole) | {"last_step": rows}
    for name, shape in shapes.items():
        value = state.get(name)
        if value is None:  # its rule needs none
            continue
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UnsupportedOption(
                f"{name} of table {table.name!r} is {found}, not of shape {shape}",
                remedy="load the state of a table of the same size, from an optimizer of the same kind",
            )
