"""Displacement of hot rows: how far training moved each of them since a snapshot.

A row is stale when |Δ| < T in every dimension [paper], which is when the largest |Δ| of the row is below T: that one
number a row is kept, so that any T can be tried without the snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.restored import checked_tensor, whole_number


@njit(cache=True, nogil=True)
def _largest_change(
    weight: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    before: npt.NDArray[np.float32],
    largest: npt.NDArray[np.float32],
) -> None:
    """``largest[i]`` = the largest |weight[rows[i]] − before[i]|; NaN anywhere gives infinity: never stale."""
    for i in range(rows.size):
        row = rows[i]
        most = np.float32(0.0)
        for d in range(before.shape[1]):
            change = abs(weight[row, d] - before[i, d])
            if not change <= most:
                most = change
                if np.isnan(change):
                    most = np.float32(np.inf)
                    break
        largest[i] = most


def _rows_of(weight: Tensor, rows: Tensor) -> Tensor:
    """Copies of rows, float32 on the CPU."""
    return weight.detach().index_select(0, rows.to(weight.device)).to("cpu", torch.float32)


class Displacement:
    """Copies of a table's hot rows, and how far each has moved since.

    Memory: 4 · D + 12 bytes a hot row; nothing for the others.

    Args:
        weight: float32 [R, D].
        hot: uint8 [R], not 0 for hot rows.
    """

    def __init__(self, weight: Tensor, hot: Tensor) -> None:
        self.num_rows = weight.shape[0]
        self.rows = hot.cpu().nonzero().squeeze(1)
        """int64 [H], the hot rows, rising."""
        self.before: Tensor | None = _rows_of(weight, self.rows)
        """float32 [H, D], the snapshot; None once it was measured."""
        self.largest = torch.full((self.rows.numel(),), float("inf"))
        """float32 [H]: the largest |Δ| of each hot row; infinite before it was measured."""

    def measure(self, weight: Tensor) -> None:
        """Compares the rows with their copies, once, and lets the copies go."""
        if self.before is None:
            raise ConfigError("the displacement was measured already", remedy="take another snapshot")
        if weight.device.type == "cpu" and weight.dtype == torch.float32:
            now, rows = weight.detach(), self.rows
        else:
            now, rows = _rows_of(weight, self.rows), torch.arange(self.rows.numel())
        _largest_change(now.numpy(), rows.numpy(), self.before.numpy(), self.largest.numpy())
        self.before = None

    def stale(self, threshold: float) -> Tensor:
        """uint8 [R]: 1 for hot rows that moved by less than ``threshold`` in every dimension."""
        marks = torch.zeros(self.num_rows, dtype=torch.uint8)
        marks[self.rows] = (self.largest < threshold).to(torch.uint8)
        return marks

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        state: dict[str, Any] = {"num_rows": self.num_rows, "rows": self.rows, "largest": self.largest}
        return state if self.before is None else state | {"before": self.before}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], weight: Tensor) -> Displacement:
        """What ``state_dict`` saved.

        Args:
            state: The state.
            weight: Of the table, [R, D].

        Raises:
            ConfigError: It is of another table.
        """
        self = cls.__new__(cls)
        self.num_rows = whole_number(state, "num_rows")
        if self.num_rows != len(weight):
            raise ConfigError(f"the snapshot is of a table of {self.num_rows} rows, not {len(weight)}")
        hot = len(state["rows"])
        self.rows = checked_tensor(state["rows"], "hot rows", (hot,), torch.int64)
        ends = [int(row) for row in self.rows[:1]] + [int(row) for row in self.rows[-1:]]
        if bool((self.rows.diff() <= 0).any()) or any(not 0 <= row < len(weight) for row in ends):
            raise ConfigError(f"the state's hot rows are not rows of a table of {len(weight)}, rising")
        self.largest = checked_tensor(state["largest"], "displacement of hot rows", (hot,)).clone()
        self.before = None
        if "before" in state:
            self.before = checked_tensor(state["before"], "copies of hot rows", (hot, weight.shape[1]))
        return self


class Threshold(NamedTuple):
    """The outcome of :func:`bisect_threshold`."""

    value: float | None
    """T, or None when the band was never met."""
    share: float
    """Share of the sampled inputs that the last T tried drops."""
    steps: int
    """Values tried."""


def bisect_threshold(
    dropped: Callable[[float], float], target: float, band: float, *, highest: float = 0.1, most_steps: int = 25
) -> Threshold:
    """Finds T in [0, ``highest``] such that the share dropped is ``target`` ± ``band`` ([code]).

    The first T tried is the middle of the range. [ours]

    Args:
        dropped: Share of the sampled inputs that a T drops; does not fall as T rises.
        target: D.
        band: Half width of the band.
        highest: Upper end of the range.
        most_steps: Values tried at most.
    """
    low, high = 0.0, highest
    share = 0.0
    for step in range(1, most_steps + 1):
        middle = (low + high) / 2
        share = dropped(middle)
        if abs(share - target) <= band:
            return Threshold(middle, share, step)
        low, high = (middle, high) if share < target else (low, middle)
    return Threshold(None, share, most_steps)
