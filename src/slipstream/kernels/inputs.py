"""What a policy does to every input, in compiled code on the calling thread: draw for it, and take it along.

On batches of a hundred inputs torch's operators cost more to call than to run.
"""

# Numba compiles what pyright cannot follow: intrinsics take fewer arguments than their definitions show.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.kernels import hashing
from slipstream.kernels.cpu_lookups import mix
from slipstream.kernels.intrinsics import copy_bytes


@njit(cache=True, nogil=True, inline="always")
def _draw(key: int, salt: np.uint64) -> np.float32:
    return np.float32(np.int64(mix(key, salt) >> np.uint64(40))) * np.float32(1.0 / (1 << 24))


@njit(cache=True, nogil=True, inline="always")
def _double(key: int, salt: np.uint64) -> np.float64:
    return np.float64(np.int64(mix(key, salt) >> np.uint64(11))) * np.float64(1.0 / (1 << 53))


@njit(cache=True, nogil=True)
def _uniform(keys: npt.NDArray[Any], salt: np.uint64, out: npt.NDArray[np.float32]) -> None:
    for i in range(keys.size):
        out[i] = _draw(keys[i], salt)


@njit(cache=True, nogil=True)
def _rows(keys: npt.NDArray[Any], salt: np.uint64, last: int, out: npt.NDArray[np.int32]) -> None:
    span = np.uint64(last)
    for i in range(keys.size):
        for k in range(out.shape[1]):
            draw = mix(np.int64(keys[i]) + (k << hashing.CANDIDATE_SHIFT), salt) >> np.uint64(32)
            out[i, k] = min(1 + np.int64((draw * span) >> np.uint64(32)), last)


@njit(cache=True, nogil=True, error_model="numpy")
def _keep(
    keys: npt.NDArray[Any],
    salt: np.uint64,
    probability: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    kept: int,
    decided: int,
    rows: npt.NDArray[np.int64],
    out: npt.NDArray[np.float32],
) -> tuple[int, int]:
    count = zeros = 0
    for i in range(keys.size):
        p = probability[i]
        rows[count] = i
        # 24 bits would keep too many where p is a few times 2^-24 or less.
        count += int(_double(keys[i], salt) < np.float64(p))
        zeros += p == np.float32(0.0)
    decided += keys.size - zeros
    factor = np.float32((kept + count) / decided) if decided else np.float32(1.0)
    for i in rows[:count]:
        out[i] = weights[i] * factor / probability[i]
    return count, zeros


@njit(cache=True, nogil=True)
def _copy_rows(columns: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], size: int, at: int) -> bool:
    """Copies rows of all columns (address of the source, of the copy, bytes a row); whether all rows are there."""
    for row in rows:
        if not 0 <= row < size:
            return False
    for source, to, stride in columns:
        to += at * stride
        if stride == 4:
            for row in rows:
                copy_bytes(to, source + row * 4, 4)
                to += 4
        elif stride == 8:
            for row in rows:
                copy_bytes(to, source + row * 8, 8)
                to += 8
        else:
            for row in rows:
                copy_bytes(to, source + row * stride, stride)
                to += stride
    return True


@njit(cache=True, nogil=True)
def _lengths(
    offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], size: int, taken: npt.NDArray[np.int64]
) -> bool:
    """Offsets of the bags taken, the first given; whether all rows and offsets are within their arrays."""
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


def draw_rows(keys: Tensor, count: int, num_rows: int, seed: int, step: int = 0) -> Tensor:
    """See :func:`slipstream.kernels.hashing.draw_rows`; the same rows. ``keys`` int32 or int64 on the CPU."""
    out = torch.empty(keys.shape[0], count, dtype=torch.int32)
    _rows(keys.contiguous().numpy(), np.uint64(hashing.stream(step, seed)), num_rows - 1, out.numpy())
    return out


def keep(
    keys: Tensor, seed: int, step: int, probability: Tensor, weights: Tensor, kept: int, decided: int
) -> tuple[Tensor, Tensor, int]:
    """Draws which inputs are kept, and weighs them.

    Input i is kept if ``hashing.hash_double(keys, seed, step)[i]`` is below its probability. It then weighs its own
    weight times (inputs kept ÷ inputs decided, these included) / probability.

    Args:
        keys: int32 or int64 [B], on the CPU.
        seed: Seed of the draws.
        step: Draws of another step are others.
        probability: float32 [B]; inputs with 0 count as not decided.
        weights: float32 [B].
        kept: Inputs kept before.
        decided: Inputs decided before.

    Returns:
        int64 [K] which are kept, in order; float32 [B] weights, of which those of the kept inputs are set; and how
        many have probability 0.
    """
    rows, out = torch.empty(keys.numel(), dtype=torch.int64), torch.empty(keys.numel(), dtype=torch.float32)
    p, own = (tensor.to(torch.float32).contiguous().numpy() for tensor in (probability, weights))
    salt = np.uint64(hashing.stream(step, seed))
    count, zeros = _keep(keys.contiguous().numpy(), salt, p, own, kept, decided, rows.numpy(), out.numpy())
    return rows[:count], out, zeros


class Columns:
    """Tensors to which rows of others are copied, of all in one call.

    Args:
        to: On the CPU and contiguous, each [capacity, ...].
    """

    def __init__(self, to: Sequence[Tensor]) -> None:
        self._to = to  # alive for as long as their addresses are written to
        self._kinds = [(tensor.dtype, tensor.shape[1:]) for tensor in to]
        self._capacity = min(tensor.shape[0] for tensor in to)
        strides = [tensor.element_size() * math.prod(tensor.shape[1:]) for tensor in to]
        self._table = np.array([[0, tensor.data_ptr(), n] for tensor, n in zip(to, strides, strict=True)], np.int64)

    def put(self, columns: Sequence[Tensor], rows: Tensor, at: int) -> None:
        """Copies rows.

        Args:
            columns: Each [B, ...], of the dtype and shape of its counterpart.
            rows: int64 [K] of 0 … B - 1, contiguous.
            at: Where the first goes.

        Raises:
            IndexError: A row is not there, or there is no room.
            ConfigError: The columns are of another kind.
        """
        held: list[Tensor] = []
        for i, ((dtype, shape), tensor) in enumerate(zip(self._kinds, columns, strict=True)):
            if tensor.dtype != dtype or tensor.shape[1:] != shape or not tensor.is_cpu:
                raise ConfigError("cannot join batches of different dtypes, shapes or devices")
            held.append(tensor.contiguous())
            self._table[i, 0] = held[i].data_ptr()
        size = min(len(tensor) for tensor in held)
        if not 0 <= at <= self._capacity - rows.numel() or not _copy_rows(self._table, rows.numpy(), size, at):
            raise IndexError(f"{rows.numel()} rows of {size} inputs, to place {at} of {self._capacity}")


def append_bags(
    values: Tensor, offsets: Tensor, rows: Tensor, to_values: Tensor, to_offsets: Tensor, at: int
) -> Tensor:
    """Copies the bags of some inputs behind others.

    Args:
        values: Integers [N].
        offsets: int64 [B + 1]; bag b is ``values[offsets[b] : offsets[b + 1]]``.
        rows: int64 [K], which bags, in any order.
        to_values: Their copies, of the dtype of ``values``, [capacity]; written to where it is large enough.
        to_offsets: int64 [capacity + 1], set up to place ``at``; contiguous, written to.
        at: How many bags are there.

    Returns:
        ``to_values``, or a larger tensor that begins with what it held.

    Raises:
        IndexError: A row is not between 0 and B - 1, or the offsets leave ``values``.
        ConfigError: The values are of another dtype.
    """
    if values.dtype != to_values.dtype:
        raise ConfigError(f"cannot join bags of {values.dtype} and {to_values.dtype}")
    first = int(to_offsets[at])
    taken = to_offsets[at : at + rows.numel() + 1].numpy()
    arrays = offsets.contiguous().numpy(), rows.contiguous().numpy()
    if not _lengths(*arrays, values.numel(), taken):
        raise IndexError(f"bags {rows.tolist()} of {offsets.numel() - 1} bags over {values.numel()} values")
    if taken[-1] > to_values.numel():
        larger = to_values.new_empty(max(int(taken[-1]), 2 * to_values.numel()))
        larger[:first] = to_values[:first]
        to_values = larger
    _copy_bags(values.contiguous().numpy(), *arrays, taken, to_values.numpy())
    return to_values


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
    taken[0] = 0
    return append_bags(values, offsets, rows, values.new_empty(0), taken, 0), taken
