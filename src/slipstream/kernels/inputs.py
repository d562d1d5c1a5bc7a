"""What a policy does to every input, in compiled code on the calling thread: draw for it, and take its bags along.

On batches of a hundred inputs torch's operators cost more to call than to run.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from slipstream.kernels import hashing
from slipstream.kernels.cpu_lookups import mix


@njit(cache=True, nogil=True)
def _uniform(keys: npt.NDArray[Any], salt: np.uint64, out: npt.NDArray[np.float32]) -> None:
    for i in range(keys.size):
        out[i] = np.float32(mix(keys[i], salt) >> np.uint64(40)) * np.float32(1.0 / (1 << 24))


@njit(cache=True, nogil=True)
def _lengths(
    offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], size: int, taken: npt.NDArray[np.int64]
) -> bool:
    """Offsets of the bags taken; whether all rows and offsets are within their arrays."""
    taken[0] = 0
    for i in range(rows.size):
        row = rows[i]
        if row < 0 or row >= offsets.size - 1 or not 0 <= offsets[row] <= offsets[row + 1] <= size:
            return False
        taken[i + 1] = taken[i] + offsets[row + 1] - offsets[row]
    return True


@njit(cache=True, nogil=True)
def _copy_bags(
    values: npt.NDArray[Any],
    offsets: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    taken: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
) -> None:
    for i in range(rows.size):
        first, to = offsets[rows[i]], taken[i]
        for j in range(taken[i + 1] - to):
            out[to + j] = values[first + j]


def hash_uniform(keys: Tensor, seed: int, step: int = 0) -> Tensor:
    """See :func:`slipstream.kernels.hashing.hash_uniform`; the same numbers. ``keys`` int32 or int64 on the CPU."""
    out = torch.empty(keys.shape, dtype=torch.float32)
    _uniform(keys.reshape(-1).numpy(), np.uint64(hashing.stream(step, seed)), out.view(-1).numpy())
    return out


def select_bags(values: Tensor, offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The bags of some inputs.

    Args:
        values: Integers [N].
        offsets: int64 [B + 1]; bag b is ``values[offsets[b] : offsets[b + 1]]``.
        rows: int64 [K], which bags, in any order.

    Returns:
        Their values, and their offsets int64 [K + 1].

    Raises:
        IndexError: A row is not between 0 and B - 1, or the offsets leave ``values``.
    """
    taken = torch.empty(rows.numel() + 1, dtype=torch.int64)
    arrays = offsets.contiguous().numpy(), rows.contiguous().numpy()
    if not _lengths(*arrays, values.numel(), taken.numpy()):
        raise IndexError(f"bags {rows.tolist()} of {offsets.numel() - 1} bags over {values.numel()} values")
    out = values.new_empty(int(taken[-1]))
    _copy_bags(values.contiguous().numpy(), *arrays, taken.numpy(), out.numpy())
    return out, taken
