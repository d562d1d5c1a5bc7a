"""The hot/cold split of FAE and Slipstream: the rows looked up most, as many as a memory budget holds.

An input is hot when all of its lookups are hot rows, cold otherwise. [paper]
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.kernels import registry

if TYPE_CHECKING:
    from slipstream.data.batch import Inputs
    from slipstream.staleness.popularity import PopularityCounts

HOT_BYTES = 256 << 20
"""Memory of the hot rows, as published."""
SAMPLE_SHARE = 0.05
"""Training inputs whose accesses are counted, as published."""


def check_hot_bytes(hot_bytes: int) -> int:
    """The budget as it is.

    Raises:
        ValueError: It holds nothing, or more than this machine's memory.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not 0 < hot_bytes <= memory:
        raise ValueError(f"hot_bytes must be in (0, {memory}], the memory of this machine, got {hot_bytes}")
    return hot_bytes


def rows_within(hot_bytes: int, dims: Iterable[int]) -> int:
    """K = hot_bytes / (4 · dim), the rows of float32 that the budget holds ([code]).

    Args:
        hot_bytes: Bytes.
        dims: Elements of a row, for each table; the largest counts where they differ. [ours]

    Raises:
        ConfigError: Not one row fits; says the least budget.
    """
    row_bytes = 4 * max(dims)
    if hot_bytes < row_bytes:
        raise ConfigError(f"hot_bytes must be at least {row_bytes}, one row of the tables, got {hot_bytes}")
    return hot_bytes // row_bytes


def add_accesses(counts: Sequence[PopularityCounts], inputs: Inputs) -> None:
    """Counts every lookup of some inputs.

    Args:
        counts: For each table, those of the one-hot columns first, then those of the bags.
        inputs: ids [B, F] and bags.
    """
    columns = inputs.ids.shape[1]
    for feature in range(columns):
        counts[feature].add(inputs.ids[:, feature])
    for count, bag in zip(counts[columns:], inputs.bags, strict=True):
        count.add(bag.values[int(bag.offsets[0]) : int(bag.offsets[-1])])


def top_rows(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Marks the K rows with the highest scores over all tables together.

    Exactly min(K, all rows) are marked. At equal scores the earlier table and then the lower row wins. [ours]

    Args:
        scores: int32 or float32 [R_t] for each table.
        k: K, 0 or more.

    Returns:
        uint8 [R_t] for each table: 1 for hot rows.
    """
    sizes = [len(score) for score in scores]
    joined = np.concatenate([score.numpy() for score in scores])
    if k >= joined.size:
        marks = np.ones(joined.size, dtype=np.uint8)
    elif k <= 0:
        marks = np.zeros(joined.size, dtype=np.uint8)
    else:
        threshold = np.partition(joined, joined.size - k)[joined.size - k]
        marks = (joined > threshold).astype(np.uint8)
        ties = np.flatnonzero(joined == threshold)
        marks[ties[: k - int(marks.sum(dtype=np.int64))]] = 1
    return list(torch.from_numpy(marks).split(sizes))


def lookups_of(inputs: Inputs) -> Tensor:
    """Lookups of each input, int64 [B]: one a column, and those of its bags."""
    total = torch.full((inputs.ids.shape[0],), inputs.ids.shape[1], dtype=torch.int64)
    for bag in inputs.bags:
        total += bag.offsets.diff()
    return total


def hot_inputs(marks: Sequence[Tensor], inputs: Inputs) -> Tensor:
    """Which inputs are hot, bool [B]: all their lookups are marked (one without lookups is hot)."""
    return registry.count_marked(marks, inputs.ids, inputs.bags) == lookups_of(inputs)
