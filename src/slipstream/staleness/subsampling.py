"""Keep-probabilities that fall with a row's popularity, and the gates that follow, without sorting the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from slipstream.kernels.reference_sampling import SCORE_CODES, SCORE_SHIFT
from slipstream.staleness.compiled import on_host, tally

OPEN = 255
_MIDDLE = 1 << (SCORE_SHIFT - 1)


@njit(cache=True, nogil=True)
def _set_gates(
    gate: npt.NDArray[np.uint8], bits: npt.NDArray[np.int32], shift: int, gates: npt.NDArray[np.uint8]
) -> int:
    """Sets each row's gate by the high bits of its score; returns how many are not open."""
    thinned = 0
    for row in range(bits.size):
        new = gates[bits[row] >> shift]
        thinned += new != 255
        gate[row] = new
    return thinned


class SubsamplingCut(NamedTuple):
    """Gates by popularity, and what they leave out."""

    gates: npt.NDArray[np.uint8]
    """uint8 [8192]: the gate of rows by the upper 13 bits of their score."""
    thinned_share: float
    """Share of the accesses that falls on rows whose gate is not open."""
    skipped_share: float
    """Share of the accesses that the gates are expected to leave out."""


def subsampling_cut(scores: Sequence[Tensor], skip: float, exponent: float) -> SubsamplingCut:
    """Keeps each access of a row of score n with probability min(1, (t / n)^exponent), t such that a share is left out.

    Args:
        scores: One float32 [R_t] a table: decayed accesses, not negative.
        skip: Share of all accesses to leave out, in [0, 1).
        exponent: Above 0. The greater, the more the most popular rows bear alone.

    Returns:
        The cut. Keep-probabilities are at least 1/256, so less is left out where more would be needed.
    """
    mass, rows = np.zeros(SCORE_CODES), np.zeros(SCORE_CODES, dtype=np.int64)
    for score in scores:
        values = on_host(score)
        tally(values.view(np.int32), values, -1, SCORE_SHIFT, mass, rows)
    gates = np.full(SCORE_CODES, OPEN, dtype=np.uint8)
    total, used = float(mass.sum()), np.flatnonzero(mass)
    if total == 0.0 or skip == 0.0:
        return SubsamplingCut(gates, 0.0, 0.0)
    popularity = ((used << SCORE_SHIFT) | _MIDDLE).astype(np.int32).view(np.float32).astype(np.float64)
    low, high = np.log(popularity[0]) - 60.0 / exponent, np.log(popularity[-1])
    for _ in range(60):
        middle = (low + high) / 2
        if float(mass[used] @ (1.0 - _keep(popularity, middle, exponent))) > skip * total:
            low = middle
        else:
            high = middle
    levels = 256 * _keep(popularity, high, exponent)
    gates[used] = np.where(levels >= OPEN, OPEN, np.rint(levels).clip(1, OPEN - 1))  # 255 stands for 256
    left_out = float(mass @ np.where(gates == OPEN, 0.0, 1.0 - gates / 256))
    return SubsamplingCut(gates, float(mass[gates != OPEN].sum() / total), left_out / total)


def _keep(popularity: npt.NDArray[np.float64], log_threshold: float, exponent: float) -> npt.NDArray[np.float64]:
    return np.exp(np.minimum(exponent * (log_threshold - np.log(popularity)), 0.0))


def set_gates(gate: Tensor, scores: Tensor, cut: SubsamplingCut) -> int:
    """Sets the gates of one table in place; returns how many are not open.

    Args:
        gate: uint8 [R].
        scores: float32 [R], those that the cut was made of.
        cut: The decision.
    """
    levels = on_host(gate)
    thinned = _set_gates(levels, on_host(scores).view(np.int32), SCORE_SHIFT, cut.gates)
    if gate.device.type != "cpu":
        gate.copy_(torch.as_tensor(levels))
    return int(thinned)
