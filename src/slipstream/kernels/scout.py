"""One pass of an on-line logistic regression over hashed ids, in compiled code on the calling thread."""

# Numba compiles what pyright cannot follow: intrinsics take fewer arguments than their definitions show.
# pyright: basic, reportCallIssue=false, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportReturnType=false, reportArgumentType=false
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from slipstream.errors import IndexOutOfRange
from slipstream.kernels.bounds import checked_offsets
from slipstream.kernels.hashing import KEY_FACTOR, MIX_1
from slipstream.kernels.intrinsics import prefetch_write

AHEAD = 8
"""Samples by which prefetching runs ahead."""


@njit(cache=True, nogil=True, inline="always")
def _slot(feature: int, id_: int, bits: int) -> int:
    x = (np.uint64(id_) + (np.uint64(feature + 1) << np.uint64(40))) * np.uint64(KEY_FACTOR)
    x = (x ^ (x >> np.uint64(32))) * np.uint64(MIX_1)
    return np.int32(x >> np.uint64(64 - bits))


@njit(cache=True, nogil=True)
def _hash_columns(slots: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], ids: Any, bits: int) -> None:
    for b in range(ids.shape[0]):
        for f in range(ids.shape[1]):
            slots[starts[b] + f] = _slot(f, ids[b, f], bits)


@njit(cache=True, nogil=True)
def _hash_bag(
    slots: npt.NDArray[np.int32],
    ends: npt.NDArray[np.int64],
    feature: int,
    values: Any,
    offsets: npt.NDArray[np.int64],
    bits: int,
) -> None:
    """Puts the bags' slots where ``ends`` points, and moves it on."""
    for b in range(offsets.size - 1):
        for i in range(offsets[b], offsets[b + 1]):
            slots[ends[b]] = _slot(feature, values[i], bits)
            ends[b] += 1


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _clip(value: np.float32) -> np.float32:
    return min(max(value, np.float32(-4.0)), np.float32(4.0))


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _learn(table: npt.NDArray[np.float32], row: int, g: np.float32, lr: np.float32) -> None:
    total = table[row, 1] + g * g
    table[row, 1] = total
    table[row, 0] -= lr * g / np.sqrt(np.float32(1.0) + total)


@njit(cache=True, nogil=True, error_model="numpy")
def _pass(
    table: npt.NDArray[np.float32],
    slots: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    dense: npt.NDArray[np.float32],
    labels: npt.NDArray[np.float32],
    learn: npt.NDArray[np.bool_],
    lr: np.float32,
    probability: npt.NDArray[np.float32],
    seen: npt.NDArray[np.float32],
) -> None:
    bias = table.shape[0] - dense.shape[1] - 1
    address = table.ctypes.data
    size = labels.size
    for b in range(size):
        soon = min(b + AHEAD, size - 1)
        for i in range(starts[soon], starts[soon + 1]):
            prefetch_write(address + np.int64(slots[i]) * 16)
        logit = table[bias, 0]
        least = np.float32(np.inf)
        for i in range(starts[b], starts[b + 1]):
            logit += table[slots[i], 0]
            least = min(least, table[slots[i], 2])
        for k in range(dense.shape[1]):
            logit += table[bias + 1 + k, 0] * _clip(dense[b, k])
        probability[b], seen[b] = np.float32(1.0 / (1.0 + math.exp(-logit))), least
    for b in range(size):
        if not learn[b]:
            continue
        soon = min(b + AHEAD, size - 1)
        for i in range(starts[soon], starts[soon + 1]):
            prefetch_write(address + np.int64(slots[i]) * 16)
        g = probability[b] - labels[b]
        for i in range(starts[b], starts[b + 1]):
            _learn(table, slots[i], g, lr)
            table[slots[i], 2] += np.float32(1.0)
        _learn(table, bias, g, lr)
        for k in range(dense.shape[1]):
            _learn(table, bias + 1 + k, g * _clip(dense[b, k]), lr)


def hash_lookups(ids: Tensor, bags: Sequence[tuple[Tensor, Tensor]], bits: int) -> tuple[Tensor, Tensor]:
    """The slots of each input's lookups, one-hot features first.

    Args:
        ids: int32 or int64 [B, F].
        bags: For each multi-hot feature values [N] and offsets [B + 1].
        bits: Slots are numbers of so many bits, 1 to 31.

    Returns:
        int32 [L] slots of all lookups, input by input, and int64 [B + 1] where each input's begin.
    """
    columns = ids.numpy()
    size, features = columns.shape
    counts = np.full(size, features, dtype=np.int64)
    wide = [(values.numpy(), checked_offsets(offsets, values.numel(), size).numpy()) for values, offsets in bags]
    for _, offsets in wide:
        counts += np.diff(offsets)
    starts = np.zeros(size + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    slots = np.empty(int(starts[-1]), dtype=np.int32)
    _hash_columns(slots, starts, columns, bits)
    ends = starts[:-1] + features
    for position, (values, offsets) in enumerate(wide):
        _hash_bag(slots, ends, features + position, values, offsets, bits)
    return torch.from_numpy(slots), torch.from_numpy(starts)


def scout(
    table: Tensor, slots: Tensor, starts: Tensor, dense: Tensor, labels: Tensor, learn: Tensor, lr: float
) -> tuple[Tensor, Tensor]:
    """See :func:`slipstream.kernels.reference.scout`.

    Raises:
        IndexOutOfRange: A slot is outside the table, or the shapes do not belong together.
    """
    own = table.shape[0] - dense.shape[1] - 1
    checked_offsets(starts, slots.numel(), labels.numel())
    least, most = slots.aminmax() if slots.numel() else (0, 0)
    sizes = {labels.numel(), learn.numel(), dense.shape[0]}
    if int(least) < 0 or int(most) >= max(own, 1) or own < 0 or table.shape[1] != 4 or len(sizes) > 1:
        raise IndexOutOfRange("a slot is outside the scout's table, or inputs and labels differ in number")
    probability, seen = np.empty(labels.numel(), np.float32), np.empty(labels.numel(), np.float32)
    _pass(
        table.numpy(),
        slots.numpy(),
        starts.numpy(),
        dense.numpy(),
        labels.numpy(),
        learn.numpy(),
        np.float32(lr),
        probability,
        seen,
    )
    return torch.from_numpy(probability), torch.from_numpy(seen)
