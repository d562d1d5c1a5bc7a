"""Gather and pool on the CPU: one pass over all tables, blocks of samples shared out to threads."""

# Numba compiles what pyright cannot follow: intrinsics take fewer arguments than their definitions show.
# pyright: basic, reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false, reportArgumentType=false
from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import carray, types

from slipstream.kernels.intrinsics import address_of, fetch_add, load_f32, load_i64, load_id, prefetch_read
from slipstream.kernels.row_ops import add_row, copy_row, copy_row_bf16, set_row
from slipstream.kernels.sources import digest

SPECIALISED_DIMS = frozenset({4, 8, 16, 32, 48, 64, 96, 128, 192, 256})
"""Rows of these sizes get kernels of their own, the others share one whose loops have a variable length."""
BLOCK = 32
"""Samples that a thread takes at a time."""
AHEAD = 4
"""Samples (in bags: lookups) by which prefetching runs ahead."""

ARGUMENTS = np.dtype(
    [
        ("counter", "i8"),  # address of the int64 that hands out blocks of samples
        ("bad", "i8"),  # 1 + position of a lookup outside its table, 0 for none
        ("batch_size", "i8"),
        ("num_features", "i8"),
        ("features", "i8"),  # address of int64 [F, 4]: weight address, rows, padding row, unused
        ("ids", "i8"),
        ("wide_ids", "i8"),  # 1: int64, 0: int32
        ("sample_stride", "i8"),  # of ids, in elements
        ("feature_stride", "i8"),
        ("offsets", "i8"),  # address of int64 [F * B + 1], 0 for one lookup a sample and feature
        ("sample_weights", "i8"),  # address of float32 [N], or 0
        ("mean", "i8"),
        ("out", "i8"),
        ("out_bf16", "i8"),
        ("dim", "i8"),
    ],
    align=True,
)
_RECORD = numba.from_dtype(ARGUMENTS)


def specialised(dim: int) -> int:
    """The size that a worker is compiled for: ``dim``, or 0 for the one whose loops have a variable length."""
    return dim if dim in SPECIALISED_DIMS else 0


@cache
def pool_worker(dim: int) -> Any:
    """The worker for tables of ``dim`` elements a row, compiled once (and kept on disk).

    ``dim`` 0 reads it from the arguments.
    """
    fixed_dim = np.int64(dim)
    source_digest = digest()

    def worker(pointer: Any) -> None:
        _ = source_digest  # part of the cache's key
        a = carray(pointer, 1)[0]
        # Copies in local variables: what is read through the record might alias the output, and would keep
        # loops from being vectorised.
        width = fixed_dim if fixed_dim > 0 else np.int64(a.dim)
        counter, batch_size, num_features, features = a.counter, a.batch_size, a.num_features, a.features
        ids, wide, sample_stride, feature_stride = a.ids, a.wide_ids, a.sample_stride, a.feature_stride
        offsets, sample_weights, mean, destination, out_bf16 = a.offsets, a.sample_weights, a.mean, a.out, a.out_bf16
        row_bytes = width * 4
        blocks = (batch_size + BLOCK - 1) // BLOCK
        total = np.empty(width, np.float32)
        total_address = address_of(total)
        while True:
            block = fetch_add(counter, 1)
            if block >= blocks:
                break
            first = block * BLOCK
            last = min(first + BLOCK, batch_size)
            if offsets == 0:
                for b in range(first, last):
                    ahead = b + AHEAD < batch_size
                    for f in range(num_features):
                        weight, rows = load_i64(features, f * 4), load_i64(features, f * 4 + 1)
                        at = b * sample_stride + f * feature_stride
                        if ahead:
                            # An id outside the table may be asked for: prefetching never faults.
                            soon = weight + load_id(ids, wide, at + AHEAD * sample_stride) * row_bytes
                            for line in range(0, row_bytes, 64):
                                prefetch_read(soon + line)
                        row = load_id(ids, wide, at)
                        if row < 0 or row >= rows:
                            carray(pointer, 1)[0].bad = 1 + b * num_features + f
                            continue
                        source = weight + row * row_bytes
                        out = (b * num_features + f) * width
                        if out_bf16:
                            copy_row_bf16(width, (destination + out * 2, source, np.float32(1.0)))
                        else:
                            copy_row(width, (destination + out * 4, source))
                continue
            for f in range(num_features):
                weight, rows, padding = (
                    load_i64(features, f * 4),
                    load_i64(features, f * 4 + 1),
                    load_i64(features, f * 4 + 2),
                )
                for b in range(first, last):
                    out = (b * num_features + f) * width
                    total[:] = 0
                    used = 0
                    begin = load_i64(offsets, f * batch_size + b)
                    end = load_i64(offsets, f * batch_size + b + 1)
                    for j in range(begin, end):
                        if j + AHEAD < end:
                            soon = load_id(ids, wide, j + AHEAD)
                            if 0 <= soon < rows:
                                prefetch_read(weight + soon * row_bytes)
                        row = load_id(ids, wide, j)
                        if row == padding:
                            continue
                        if row < 0 or row >= rows:
                            carray(pointer, 1)[0].bad = 1 + j
                            continue
                        used += 1
                        source = weight + row * row_bytes
                        factor = np.float32(1.0)
                        if sample_weights != 0:
                            factor = load_f32(sample_weights, j)
                        add_row(width, (total_address, source, factor))
                    factor = np.float32(1.0)
                    if mean != 0 and used > 1:
                        factor = np.float32(1.0) / np.float32(used)
                    if out_bf16:
                        copy_row_bf16(width, (destination + out * 2, total_address, factor))
                    else:
                        set_row(width, (destination + out * 4, total_address, factor))

    return numba.cfunc(types.void(types.CPointer(_RECORD)), cache=True, error_model="numpy")(worker)
