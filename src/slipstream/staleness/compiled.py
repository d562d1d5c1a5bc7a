"""Loops over rows and ids in compiled code, for signals that are no kernels of training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from torch import Tensor


def on_host(tensor: Tensor) -> npt.NDArray[Any]:
    """The numbers of a tensor: as they lie in memory on the CPU, a copy (which waits) from a GPU."""
    return tensor.detach().cpu().numpy()


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
def mark_below(
    seen: npt.NDArray[np.uint8],
    ids: npt.NDArray[Any],
    offsets: npt.NDArray[np.int64],
    limit: int,
    out: npt.NDArray[np.bool_],
) -> None:
    """Sets ``out[b]`` where ``seen`` is below ``limit`` for an id of sample b, ``ids[offsets[b]:offsets[b + 1]]``."""
    for b in range(out.size):
        for place in range(offsets[b], offsets[b + 1]):
            if seen[ids[place]] < limit:
                out[b] = True
                break


@njit(cache=True, nogil=True)
def factor_for_sum(scores: npt.NDArray[np.float32], floor: float, total: float) -> float:
    """The factor c for which min(max(c * score, floor), 1) adds up to ``total``: Newton's steps within a bracket.

    The sum rises with c in straight pieces, so that few steps find it. Where no c reaches ``total``, one that puts
    every score above 0 at 1.
    """
    low, high, least, most = 0.0, np.inf, np.inf, 0.0
    for score in scores:
        if score > 0.0:
            least, most = min(least, score), max(most, score)
    if most == 0.0:
        return 0.0
    high = 1.0 / least
    c = min(total / (scores.size * most), high)
    for _ in range(200):
        found, slope = 0.0, 0.0
        for score in scores:
            kept = c * score
            if kept >= 1.0:
                found += 1.0
            elif kept > floor:
                found += kept
                slope += score
            else:
                found += floor
        if abs(found - total) <= 1e-7 * total:
            break
        if found < total:
            low = c
        else:
            high = c
        if high - low <= 1e-7 * high:
            break
        c += (total - found) / slope if slope > 0.0 else np.inf
        if not low < c < high:
            # A bracket may span many powers of ten, where half way between would hardly move.
            c = math.sqrt(low * high) if low > 0.0 else high * 1e-3
    return c
