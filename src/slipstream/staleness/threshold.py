"""The score from which on rows hold a share of all accesses, without sorting the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.staleness.compiled import tally

_LOW_BITS = 16
_BINS = 1 << 15  # sign bit aside, the high half of 31 bits


Reduce = Callable[[npt.NDArray[Any]], None]
"""Adds an array up over ranks, in place: for rows that lie on several."""


class Cut(NamedTuple):
    """Rows with ``score >= threshold`` are kept."""

    threshold: float
    """Smallest score kept; above 0, so rows without any access are never kept; ``inf`` when there was no access at
    all."""
    kept_share: float
    """Share of the access mass that the kept rows hold; above the share asked for when scores at the threshold tie."""
    kept_rows: int
    """Rows kept."""


def share_cut(scores: Sequence[Tensor], share: float, reduce: Reduce | None = None) -> Cut:
    """Finds the highest threshold such that the rows at or above it hold at least ``share`` of all scores.

    Rows with equal scores are kept or dropped together. [ours]

    Radix selection: the bits of a non-negative float32 (or of an int32) sort like the number, so two histograms, over
    the high and then over the low 16 bits, find the threshold exactly in two passes over the rows. Nothing is
    sorted or copied.

    Args:
        scores: One tensor [R_t] a table, non-negative and finite; float32 or int32, the same for all.
        share: Share of the mass to keep, in (0, 1].
        reduce: The rows are those of several ranks, each of which calls this with its own.

    Returns:
        The cut, the same on all ranks.

    Raises:
        ConfigError: ``share`` is outside (0, 1], or the dtypes are not as said.
    """
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"share must be in (0, 1], got {share}")
    dtypes = {tensor.dtype for tensor in scores}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.int32}:
        raise ConfigError(f"scores must all be float32 or all int32, got {sorted(str(dtype) for dtype in dtypes)}")
    dtype = dtypes.pop()
    mass, rows = _histogram(scores, None, reduce)
    total = float(mass.sum())
    if total == 0.0:
        return Cut(threshold=float("inf"), kept_share=0.0, kept_rows=0)
    # Sums in another order differ in the last bits; a share of 1 must still reach the rarest row.
    wanted = total * share * (1.0 - 1e-12)
    high, above_mass, above_rows = _select(mass, rows, wanted, 0.0, 0)
    mass, rows = _histogram(scores, high, reduce)
    low, above_mass, above_rows = _select(mass, rows, wanted, above_mass, above_rows)
    bits = torch.tensor([(high << _LOW_BITS) | low], dtype=torch.int32)
    return Cut(
        threshold=float(bits.view(dtype).item()),
        kept_share=min(1.0, (above_mass + float(mass[low])) / total),
        kept_rows=above_rows + int(rows[low]),
    )


def _select(
    mass: npt.NDArray[np.float64], rows: npt.NDArray[np.int64], wanted: float, above_mass: float, above_rows: int
) -> tuple[int, float, int]:
    """The highest bin down to which the mass reaches ``wanted``, with mass and rows above that bin."""
    reached = above_mass + np.cumsum(mass[::-1])
    position = int(np.searchsorted(reached, wanted))
    occupied = np.flatnonzero(mass)
    # Rounding may leave the total a hair below what is wanted: then the lowest bin that holds anything is the one.
    chosen = max(mass.size - 1 - min(position, mass.size - 1), int(occupied[0]))
    return chosen, above_mass + float(mass[chosen + 1 :].sum()), above_rows + int(rows[chosen + 1 :].sum())


def _histogram(
    scores: Sequence[Tensor], high: int | None, reduce: Reduce | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Mass and rows by the high bits of the score, or, among rows with these high bits, by the low bits.

    Rows of score 0 are left out.
    """
    bins = _BINS if high is None else 1 << _LOW_BITS
    mass = np.zeros(bins)
    rows = np.zeros(bins, dtype=np.int64)
    for tensor in scores:
        values = tensor.numpy()
        tally(values.view(np.int32), values, -1 if high is None else high, _LOW_BITS, mass, rows)
    if reduce is not None:
        reduce(mass)
        reduce(rows)
    return mass, rows
