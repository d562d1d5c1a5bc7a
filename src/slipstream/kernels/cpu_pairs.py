"""Lower triangles of small square matrices on the CPU: what a dot interaction packs in forward and unpacks in backward.

torch gathers them element by element, which costs more than the products themselves.
"""

# Numba compiles what pyright cannot follow: intrinsics take fewer arguments than their definitions show.
# pyright: basic, reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false, reportArgumentType=false
from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import carray, types
from torch import Tensor

from slipstream.errors import UnsupportedOption
from slipstream.kernels import parallel
from slipstream.kernels.intrinsics import fetch_add, load_f32, load_u16, store_f32, store_u16
from slipstream.kernels.row_ops import copy_row
from slipstream.kernels.sources import digest

BLOCK = 32
"""Samples that a thread takes at a time."""
DTYPES = (torch.float32, torch.bfloat16)
"""Types of elements that there are kernels for."""

ARGUMENTS = np.dtype(
    [
        ("counter", "i8"),  # address of the int64 that hands out blocks of samples
        ("batch_size", "i8"),
        ("count", "i8"),  # V
        ("square", "i8"),  # address of [B, V, V]
        ("pairs", "i8"),  # address of [B, V (V - 1) / 2]
        ("stride", "i8"),  # of pairs from sample to sample, in elements
    ],
    align=True,
)
_RECORD = numba.from_dtype(ARGUMENTS)


@numba.njit(inline="always")
def _copy_halves(count: int, to: int, source: int) -> None:
    """``count`` elements of two bytes."""
    copy_row(count // 2, (to, source))
    if count % 2:
        store_u16(to, count - 1, load_u16(source, count - 1))


@cache
def _worker(pack: bool, size: int) -> Any:
    """The worker for elements of ``size`` bytes, 4 or 2."""
    source_digest = digest()
    whole = size == 4

    def worker(pointer: Any) -> None:
        _ = source_digest  # part of the cache's key
        a = carray(pointer, 1)[0]
        counter, batch_size, count, square, pairs, stride = (
            a.counter,
            a.batch_size,
            a.count,
            a.square,
            a.pairs,
            a.stride,
        )
        while True:
            first = fetch_add(counter, 1) * BLOCK
            if first >= batch_size:
                break
            for b in range(first, min(first + BLOCK, batch_size)):
                matrix = square + b * count * count * size
                packed = pairs + b * stride * size
                if not pack:
                    for i in range(count):
                        if whole:
                            store_f32(matrix, i * count + i, np.float32(0.0))
                        else:
                            store_u16(matrix, i * count + i, np.uint16(0))
                for i in range(1, count):
                    row = matrix + i * count * size
                    to, source = (packed, row) if pack else (row, packed)
                    if whole:
                        copy_row(i, (to, source))
                    else:
                        _copy_halves(i, to, source)
                    if not pack:
                        for j in range(i):
                            if whole:
                                store_f32(matrix, j * count + i, load_f32(packed, j))
                            else:
                                store_u16(matrix, j * count + i, load_u16(packed, j))
                    packed += i * size

    return numba.cfunc(types.void(types.CPointer(_RECORD)), cache=True, error_model="numpy")(worker)


def pack_pairs(square: Tensor) -> Tensor:
    """See :func:`slipstream.kernels.reference.pack_pairs`; of a type of :data:`DTYPES`."""
    square = square.contiguous()
    if square.dim() != 3 or square.shape[1] != square.shape[2] or square.dtype not in DTYPES:
        shape = f"{square.dtype} {tuple(square.shape)}"
        raise UnsupportedOption(f"pairs are packed of float32 or bfloat16 [B, V, V], not of {shape}")
    batch, count, _ = square.shape
    pairs = square.new_empty(batch, count * (count - 1) // 2)
    _run(True, square, pairs)
    return pairs


def unpack_pairs(pairs: Tensor, count: int) -> Tensor:
    """See :func:`slipstream.kernels.reference.unpack_pairs`; of a type of :data:`DTYPES`."""
    if pairs.dim() != 2 or pairs.shape[1] != count * (count - 1) // 2 or pairs.dtype not in DTYPES:
        raise UnsupportedOption(
            f"{pairs.dtype} {tuple(pairs.shape)} are no pairs of {count} vectors, float32 or bfloat16"
        )
    if pairs.stride(1) != 1:
        pairs = pairs.contiguous()
    square = pairs.new_empty(pairs.shape[0], count, count)
    _run(False, square, pairs)
    return square


def _run(pack: bool, square: Tensor, pairs: Tensor) -> None:
    if square.numel() == 0:
        return
    counter, arguments = np.zeros(1, np.int64), np.zeros(1, ARGUMENTS)
    record = arguments[0]
    record["counter"] = counter.ctypes.data
    record["batch_size"], record["count"] = square.shape[0], square.shape[1]
    record["square"], record["pairs"], record["stride"] = square.data_ptr(), pairs.data_ptr(), pairs.stride(0)
    worker = _worker(pack, square.element_size())
    parallel.run(worker.address, arguments, torch.get_num_threads() if square.shape[0] > 4 * BLOCK else 1)
