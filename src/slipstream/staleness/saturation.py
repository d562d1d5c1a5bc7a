"""The agreement below which rows hold a share of all accesses, and the gates that follow, without sorting the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.kernels.signal import CODES, steps_of_counts
from slipstream.staleness.compiled import on_host

OPEN = 255


@njit(cache=True, nogil=True)
def _tally(
    signal: npt.NDArray[np.uint16],
    scores: npt.NDArray[np.float32],
    ripe: int,
    mass: npt.NDArray[np.float64],
) -> float:
    """Adds the scores of rows whose count is ``ripe`` or more to ``mass`` by code; returns the sum of all scores."""
    total = 0.0
    for row in range(signal.size):
        score = scores[row]
        total += score
        if (signal[row] & 255) >= ripe:
            mass[signal[row] >> 8] += score
    return total


@njit(cache=True, nogil=True)
def _set_gates(
    gate: npt.NDArray[np.uint8],
    signal: npt.NDArray[np.uint16],
    ripe: int,
    gates: npt.NDArray[np.uint8],
    done: npt.NDArray[np.int64],
) -> None:
    """Sets each row's gate by its code; adds to ``done`` the rows shut now, and those opened that had been shut."""
    for row in range(signal.size):
        new = 255
        if (signal[row] & 255) >= ripe:
            new = gates[signal[row] >> 8]
        done[0] += new != 255
        done[1] += new == 255 and gate[row] != 255
        gate[row] = new


class SaturationCut(NamedTuple):
    """Gates by code, and what they leave out."""

    gates: npt.NDArray[np.uint8]
    """uint8 [256]: the gate of ripe rows with each code."""
    gated_share: float
    """Share of the accesses that falls on rows whose gate is not open."""
    skipped_share: float
    """Share of the accesses whose update the gates are expected to skip."""


def ripe_count(min_updates: int) -> int:
    """The least count (low byte of a signal) that stands for ``min_updates`` steps or more.

    Raises:
        ConfigError: Counts do not reach that far.
    """
    steps = steps_of_counts()
    if not 1 <= min_updates <= steps[-1]:
        raise ConfigError(f"min_updates must be in [1, {steps[-1]}], got {min_updates}")
    return next(count for count, number in enumerate(steps) if number >= min_updates)


def saturation_cut(
    signals: Sequence[Tensor], scores: Sequence[Tensor], skip: float, *, ripe: int, probe: int
) -> SaturationCut:
    """Shuts rows of the lowest codes until a share of all accesses is skipped.

    Args:
        signals: One uint16 [R_t] a table.
        scores: One float32 [R_t] a table: decayed accesses, not negative.
        skip: Share of all accesses to skip, in [0, 1).
        ripe: Rows whose count is lower stay open; their accesses count in the total.
        probe: Gate of a shut row, 0 to 254. Updates that it lets through are made up for by more rows shut.

    Returns:
        The cut. The last code is shut in part: its gate is higher, so that the share is met.
    """
    mass = np.zeros(CODES)
    total = 0.0
    for signal, score in zip(signals, scores, strict=True):
        total += _tally(on_host(signal), on_host(score), ripe, mass)
    gates = np.full(CODES, OPEN, dtype=np.uint8)
    if total == 0.0 or skip == 0.0:
        return SaturationCut(gates, 0.0, 0.0)
    most = 1.0 - probe / 256
    left, gated = skip * total, 0.0
    for code in np.flatnonzero(mass):
        if left <= 1e-12 * total:
            break
        share = min(left / mass[code], most)
        gates[code] = min(max(round(256 * (1.0 - share)), probe), OPEN)
        if gates[code] == OPEN:
            break
        left -= (1.0 - gates[code] / 256) * mass[code]
        gated += mass[code]
        if share < most:
            break
    skipped = float(((1.0 - gates / 256) * mass)[gates != OPEN].sum())
    return SaturationCut(gates, float(gated / total), skipped / total)


def set_gates(gate: Tensor, signal: Tensor, cut: SaturationCut, ripe: int) -> tuple[int, int]:
    """Sets the gates of one table in place: rows shut now, and rows opened that had been shut.

    Args:
        gate: uint8 [R].
        signal: uint16 [R].
        cut: The decision.
        ripe: As for :func:`saturation_cut`.
    """
    done: npt.NDArray[Any] = np.zeros(2, dtype=np.int64)
    levels = on_host(gate)
    _set_gates(levels, on_host(signal), ripe, cut.gates, done)
    if gate.device.type != "cpu":
        gate.copy_(torch.as_tensor(levels))
    return int(done[0]), int(done[1])
