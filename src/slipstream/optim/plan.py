"""What an optimizer hands to the kernel: its tables, kept prepared from step to step, and their row gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slipstream.embedding.row_gradient import RowGradient
from slipstream.embedding.table import Table
from slipstream.kernels.types import RowGradients, TableSet


@dataclass(slots=True)
class Part:
    """Tables of one row size and device, ready for the kernel."""

    positions: list[int]
    owners: list[Table]
    tables: TableSet
    optimizer_states: list[dict[str, Any]]
    addresses: list[int]
    subsets: dict[tuple[int, ...], TableSet]

    def subset(self, at: list[int]) -> TableSet:
        """Some of the tables, prepared once too."""
        found = self.subsets.get(tuple(at))
        if found is None:
            found = self.subsets[tuple(at)] = TableSet(self.tables[i] for i in at)
        return found

    def steps(self) -> Iterator[tuple[TableSet, list[int] | None, int]]:
        """Counts a step; the tables whose count is the same together, their positions (None: all), and the count."""
        for state in self.optimizer_states:
            state["step"] += 1
        steps = [int(state["step"]) for state in self.optimizer_states]
        if len(set(steps)) == 1:
            yield self.tables, None, steps[0]
            return
        for step in sorted(set(steps)):  # some tables have missed steps: they had no lookups then
            at = [i for i, own in enumerate(steps) if own == step]
            yield self.subset(at), at, step

    def is_captured(self) -> bool:
        """Whether what is done now goes into a CUDA graph instead of happening."""
        return self.owners[0].weight.is_cuda and torch.cuda.is_current_stream_capturing()

    def is_of(self, state: Mapping[Tensor, dict[str, Any]], names: Sequence[str]) -> bool:
        """Whether the optimizer's state still is what was prepared: nobody has replaced or deleted a part of it.

        Args:
            state: The optimizer's, by parameter.
            names: Of the tensors that a table keeps, in the kernel's order.
        """
        first, second = (*names, "", "")[:2]  # no state has that name
        for owner, mine, table in zip(self.owners, self.optimizer_states, self.tables, strict=True):
            get = mine.get
            if (
                state.get(owner.weight) is not mine
                or get(first) is not table.first
                or get(second) is not table.second
                or get("last_step") is not table.last_step
            ):
                return False
        return True

    def _changed(self) -> None:
        self.tables.prepared = None
        self.subsets.clear()

    def refresh(self, gradients: list[RowGradient], unscale: float | Tensor) -> None:
        """Take over what may have changed since the last step: gates, moved weights, scales."""
        addresses = [table.weight.data_ptr() for table in self.owners]
        if addresses != self.addresses:
            self.addresses = addresses
            self._changed()
            for table, state in zip(self.owners, self.tables, strict=True):
                state.weight = table.weight
        for position, table, state in zip(self.positions, self.owners, self.tables, strict=True):
            state.scale = gradients[position].scale * unscale
            if state.gate is not table.gate or state.by_sample != table.by_sample:
                state.gate, state.by_sample = table.gate, table.by_sample
                self._changed()
            if table.signal is not state.signal or table.trail is not state.trail:
                if table.signal is not None and state.second is None:  # no moments to measure
                    table.open_trail()
                state.signal, state.trail = table.signal, table.trail
                self._changed()


def joined(gradients: Sequence[RowGradient]) -> list[RowGradients]:
    """The backward passes of several tables, each once, with the position of every feature's table."""
    merged: dict[int, tuple[RowGradients, list[int]]] = {}
    last, entry = None, None
    for position, gradient in enumerate(gradients):
        for block, features in gradient.blocks:
            # The object is the identity of a backward pass: blocks are copied when their scale differs.
            if block is not last:
                last, entry = block, merged.get(id(block))
            if entry is None:
                entry = merged[id(block)] = (block, [-1] * block.lookups.num_features)
            for feature in features:
                entry[1][feature] = position
    return [RowGradients(block.lookups, block.grad, tuple(positions)) for block, positions in merged.values()]
