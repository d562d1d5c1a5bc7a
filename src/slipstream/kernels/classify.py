"""The input classifier: how many of each input's lookups hit marked rows, in compiled code on the calling thread."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from slipstream.kernels import reference
from slipstream.kernels.bounds import checked_offsets


@njit(cache=True, nogil=True)
def _count_column(marks: npt.NDArray[np.uint8], ids: npt.NDArray[Any], counts: npt.NDArray[np.int32]) -> int:
    """Adds 1 to ``counts[b]`` where the row ``ids[b]`` is marked; returns how many ids are outside the table."""
    outside = 0
    for b in range(ids.size):
        row = ids[b]
        if 0 <= row < marks.size:
            counts[b] += marks[row] != 0
        else:
            outside += 1
    return outside


@njit(cache=True, nogil=True)
def _count_bag(
    marks: npt.NDArray[np.uint8],
    values: npt.NDArray[Any],
    offsets: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int32],
) -> int:
    """Adds to ``counts[b]`` the marked rows of bag ``b``; returns how many ids are outside the table."""
    outside = 0
    for b in range(counts.size):
        for i in range(offsets[b], offsets[b + 1]):
            row = values[i]
            if 0 <= row < marks.size:
                counts[b] += marks[row] != 0
            else:
                outside += 1
    return outside


def count_marked(marks: Sequence[Tensor], ids: Tensor, bags: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
    """See :func:`slipstream.kernels.reference.count_marked`.

    Column by column: the marks of one table stay in the cache, and nothing is copied.
    """
    counts = np.zeros(ids.shape[0], dtype=np.int32)
    columns, outside = ids.numpy(), 0
    for feature in range(columns.shape[1]):
        outside += _count_column(marks[feature].numpy(), columns[:, feature], counts)
    for mark, (values, offsets) in zip(marks[columns.shape[1] :], bags, strict=True):
        ends = checked_offsets(offsets, values.numel(), len(counts))
        outside += _count_bag(mark.numpy(), values.numpy(), ends.numpy(), counts)
    if outside:
        reference.count_marked(marks, ids, bags)  # raises with the place
    return torch.from_numpy(counts)
