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
LEAST = 1e-7
"""Probabilities nearer to 0 or 1 count as this far from it in the loss."""
BAD_LABEL, BAD_DENSE = 1, 2
"""Flaws of a batch: a label outside [0, 1], a dense value that is not a finite number."""


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
def _flaw(dense: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]) -> int:
    """What is wrong with a batch: BAD_LABEL, BAD_DENSE, or 0."""
    for label in labels:
        if not 0.0 <= label <= 1.0:
            return BAD_LABEL
    for b in range(dense.shape[0]):
        for k in range(dense.shape[1]):
            if not np.isfinite(dense[b, k]):
                return BAD_DENSE
    return 0


@njit(cache=True, nogil=True)
def _slots_fit(slots: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], rows: int) -> bool:
    """Whether the inputs' lookups lie within the slots, and the slots within the table."""
    before = np.int64(0)
    for start in starts:
        if start < before or start > slots.size:
            return False
        before = start
    least, most = np.int32(0), np.int32(0)
    for slot in slots:
        least, most = min(least, slot), max(most, slot)
    return least >= 0 and most < rows


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
) -> float:
    bias = table.shape[0] - dense.shape[1] - 1
    address = table.ctypes.data
    size = labels.size
    loss = 0.0
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
        p = np.float32(1.0 / (1.0 + math.exp(-logit)))
        probability[b], seen[b] = p, least
        certain = min(max(p, np.float32(LEAST)), np.float32(1.0 - LEAST))
        if labels[b] > 0.0:
            loss -= labels[b] * math.log(certain)
        if labels[b] < 1.0:
            loss -= (np.float32(1.0) - labels[b]) * math.log(np.float32(1.0) - certain)
    for b in range(size):
        if learn.size and not learn[b]:
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
    return loss


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


def flaw(dense: Tensor, labels: Tensor) -> int:
    """What keeps a scout from learning a batch: BAD_LABEL, BAD_DENSE, or 0 for nothing.

    Args:
        dense: float32 [B, n].
        labels: float32 [B].
    """
    return _flaw(dense.numpy(), labels.numpy())


def scout(
    table: Tensor, slots: Tensor, starts: Tensor, dense: Tensor, labels: Tensor, learn: Tensor | None, lr: float
) -> tuple[Tensor, Tensor, float]:
    """See :func:`slipstream.kernels.reference.scout`.

    Raises:
        IndexOutOfRange: A slot is outside the table, or the shapes do not belong together.
    """
    own = table.shape[0] - dense.shape[1] - 1
    sizes = {labels.numel(), labels.numel() if learn is None else learn.numel(), dense.shape[0], starts.numel() - 1}
    if own < 0 or table.shape[1] != 4 or len(sizes) > 1 or not _slots_fit(slots.numpy(), starts.numpy(), max(own, 1)):
        raise IndexOutOfRange("a slot is outside the scout's table, or inputs and labels differ in number")
    probability, seen = np.empty(labels.numel(), np.float32), np.empty(labels.numel(), np.float32)
    loss = _pass(
        table.numpy(),
        slots.numpy(),
        starts.numpy(),
        dense.numpy(),
        labels.numpy(),
        np.empty(0, np.bool_) if learn is None else learn.numpy(),
        np.float32(lr),
        probability,
        seen,
    )
    return torch.from_numpy(probability), torch.from_numpy(seen), loss
