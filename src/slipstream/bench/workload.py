"""The workload of the benchmarks: tables with the cardinalities of Criteo Kaggle, ids drawn by Zipf's law."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from slipstream.data.synthetic import CRITEO_KAGGLE_CARDINALITIES

TOTAL_ROWS = 9_400_000
"""Rows of all tables of the benchmarks together: the largest that leaves room for a peer's copy and its state at
dimension 128."""

BATCH_SIZE = 2048
ZIPF_EXPONENT = 1.05


def cardinalities(total: int = TOTAL_ROWS) -> tuple[int, ...]:
    """Criteo Kaggle's cardinalities, the large ones scaled by one factor to ``total`` rows of all tables together.

    Columns of at most 10,000 values keep them: a column such as a country does not shrink with the sample.

    Args:
        total: Rows of all tables together, 100,000 or more.
    """
    small = sum(rows for rows in CRITEO_KAGGLE_CARDINALITIES if rows <= 10_000)
    factor = (total - small) / (sum(CRITEO_KAGGLE_CARDINALITIES) - small)
    scaled = [rows if rows <= 10_000 else max(1, round(rows * factor)) for rows in CRITEO_KAGGLE_CARDINALITIES]
    scaled[scaled.index(max(scaled))] += total - sum(scaled)
    return tuple(scaled)


def zipf_batches(
    rows: Sequence[int],
    *,
    batches: int,
    batch_size: int = BATCH_SIZE,
    exponent: float = ZIPF_EXPONENT,
    seed: int = 0,
) -> list[Tensor]:
    """Draw batches of one-hot ids, P(rank k) proportional to k ** -exponent, popular rows scattered over each table.

    Args:
        rows: Rows of each of F tables.
        batches: Number of batches.
        batch_size: B, samples a batch.
        exponent: Of Zipf's law.
        seed: Of the draw.

    Returns:
        int32 [B, F] each.
    """
    random = np.random.default_rng(seed)
    ids = np.empty((batches * batch_size, len(rows)), dtype=np.int32)
    for column, count in enumerate(rows):
        share = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -exponent)
        ranks = np.searchsorted(share, random.random(len(ids)) * share[-1])
        ids[:, column] = random.permutation(count).astype(np.int32)[np.minimum(ranks, count - 1)]
    return list(torch.from_numpy(ids).split(batch_size))


def describe(rows: Sequence[int]) -> str:
    """The tables and the law of the ids, for a record."""
    return f"{len(rows)} tables with Criteo Kaggle's cardinalities scaled to {sum(rows):,} rows; Zipf {ZIPF_EXPONENT}"


def shares(batches: Sequence[Tensor]) -> dict[str, float]:
    """How skewed the ids are: distinct rows of a batch per lookup, and the mean over the batches."""
    distinct = [sum(len(column.unique()) for column in batch.T) / batch.numel() for batch in batches[:8]]
    return {"distinct_rows_per_lookup": round(float(np.mean(distinct)), 4)}
