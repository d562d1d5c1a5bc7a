"""Loops over rows and ids in compiled code, for signals that are no kernels of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit


@njit(cache=True, nogil=True)
def count_exactly(counts: npt.NDArray[np.int32], ids: npt.NDArray[Any]) -> int:
    """Adds 1 to ``counts[id]``, 2^31 - 1 at most, for each id; returns how many were outside the table (left out)."""
    outside = 0
    for id_ in ids:
        if 0 <= id_ < counts.size:
            counts[id_] += counts[id_] < 2147483647
        else:
            outside += 1
    return outside


@njit(cache=True, nogil=True)
def tally(
    bits: npt.NDArray[np.int32],
    values: npt.NDArray[Any],
    high: int,
    low_bits: int,
    mass: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
) -> None:
    """Adds each row above 0 to the histograms, by its bits.

    Args:
        bits: [R] the scores' bits.
        values: [R] the scores.
        high: -1: bins are the high bits; else only rows with these high bits, and bins are the low bits.
        low_bits: How many bits are low.
        mass: Sum of the scores in each bin.
        rows: Rows in each bin.
    """
    mask = (1 << low_bits) - 1
    for row in range(bits.size):
        b = bits[row]
        if b > 0:
            key = b >> low_bits
            if high >= 0:
                if key != high:
                    continue
                key = b & mask
            mass[key] += values[row]
            rows[key] += 1


@njit(cache=True, nogil=True)
def count_up_to(seen: npt.NDArray[np.uint8], ids: npt.NDArray[Any], most: int) -> None:
    """Adds 1 to ``seen[id]`` for each id inside the table, up to ``most`` (255 or less)."""
    for id_ in ids:
        if 0 <= id_ < seen.size and seen[id_] < most:
            seen[id_] += 1


@njit(cache=True, nogil=True)
def factor_for_sum(scores: npt.NDArray[np.float32], floor: float, total: float) -> float:
    """The factor c for which min(max(c * score, floor), 1) adds up to ``total``, by bisection."""
    low, high, bounded = 0.0, 1.0, False
    for _ in range(60):
        middle = 0.5 * (low + high) if bounded else high
        found = 0.0
        for score in scores:
            found += min(max(middle * score, floor), 1.0)
        if found >= total:
            high, bounded = middle, True
        elif bounded:
            low = middle
        elif high < 1e9:
            low, high = high, high * 4.0
        else:
            break
        if bounded and high - low < 1e-6 * high:
            break
    return high
