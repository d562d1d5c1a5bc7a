"""Dot products of all pairs of a sample's vectors on the CPU, and the vectors' gradients: DLRM's interaction.

A batched product computes every pair twice, and is slow on matrices as small as 27 x 16; picking the triangle out of
it, and laying the gradients out as matrices again, costs as much once more. Here a sample's vectors are read once, into
a thread's own scratch memory, and only the triangle is written.
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
from slipstream.kernels.cpu_pool import specialised
from slipstream.kernels.intrinsics import address_of, fetch_add, load_f32, load_u16, store_f32, store_i32
from slipstream.kernels.row_ops import LANES, TILE, add_row, copy_row, copy_row_bf16, multiply_tile
from slipstream.kernels.sources import digest

BLOCK = 32
"""Samples that a thread takes at a time."""
ALONE = 1 << 20
"""Products of two numbers below which one thread is quicker than several are woken."""
DTYPES = (torch.float32, torch.bfloat16)
"""Types of elements that there are kernels for; sums are float32 in both."""

ARGUMENTS = np.dtype(
    [
        ("counter", "i8"),  # address of the int64 that hands out blocks of samples
        ("batch_size", "i8"),
        ("count", "i8"),  # V
        ("dim", "i8"),  # D
        ("vectors", "i8"),  # address of [B, V, D]
        ("dots", "i8"),  # address of [B, V (V - 1) / 2], or with the first vector ahead of them
        ("stride", "i8"),  # of dots from sample to sample, in elements
        ("ahead", "i8"),  # whether the first vector is
        ("grad", "i8"),  # address of the vectors' gradients [B, V, D]; 0: dots are computed, not read
    ],
    align=True,
)
_RECORD = numba.from_dtype(ARGUMENTS)


@numba.njit(inline="always")
def _widen(width: int, to: int, source: int) -> None:
    """Copies a row of bfloat16 to one of float32."""
    for k in range(width):
        store_i32(to, k, np.int32(load_u16(source, k)) << 16)


@cache
def _worker(dim: int, half: bool) -> Any:
    """The worker for vectors of ``dim`` elements of bfloat16, if ``half``, or float32.

    ``dim`` 0 reads it from the arguments.
    """
    fixed_dim = np.int64(dim)
    size = 2 if half else 4
    source_digest = digest()

    def worker(pointer: Any) -> None:
        _ = source_digest  # part of the cache's key
        a = carray(pointer, 1)[0]
        counter, batch_size, count = a.counter, a.batch_size, a.count
        width = fixed_dim if fixed_dim > 0 else np.int64(a.dim)
        vectors, grad, ahead = a.vectors, a.grad, a.ahead
        wide, long = -(-width // LANES) * LANES, -(-count // LANES) * LANES  # whole vectors of LANES elements
        tall = -(-count // TILE) * TILE
        rows_array = np.zeros((tall + 1) * wide, np.float32)  # the sample's vectors; last, a gradient's part
        other_array = np.zeros(max(wide, tall) * long, np.float32)  # the vectors transposed, or pairs as a matrix
        out_array = np.empty(tall * max(wide, long), np.float32)
        while True:
            # In the loop: an array is freed after its last use.
            rows, other, out = address_of(rows_array), address_of(other_array), address_of(out_array)
            first = fetch_add(counter, 1) * BLOCK
            if first >= batch_size:
                break
            for b in range(first, min(first + BLOCK, batch_size)):
                sample = b * count * width * size
                dots = a.dots + b * a.stride * size
                pairs = dots + width * size if ahead else dots
                for i in range(count):
                    to, source = rows + i * wide * 4, vectors + sample + i * width * size
                    if half:
                        _widen(width, to, source)
                    else:
                        copy_row(width, (to, source))
                if grad == 0:
                    for i in range(count):
                        for k in range(width):
                            store_f32(other, k * long + i, load_f32(rows, i * wide + k))
                    for i in range(0, count, TILE):
                        for j in range(0, min(i + TILE, count) - 1, LANES):
                            multiply_tile(
                                width, (out + (i * long + j) * 4, long, rows + i * wide * 4, wide, other + j * 4, long)
                            )
                    if ahead:
                        if half:
                            copy_row_bf16(width, (dots, rows, np.float32(1.0)))
                        else:
                            copy_row(width, (dots, rows))
                    for i in range(1, count):
                        if half:
                            copy_row_bf16(i, (pairs, out + i * long * 4, np.float32(1.0)))
                        else:
                            copy_row(i, (pairs, out + i * long * 4))
                        pairs += i * size
                    continue
                # The gradient of pair (i, j) goes to both vectors: a symmetric matrix, its diagonal zero.
                for i in range(1, count):
                    row = other + i * long * 4
                    if half:
                        _widen(i, row, pairs)
                    else:
                        copy_row(i, (row, pairs))
                    for j in range(i):
                        store_f32(other, j * long + i, load_f32(row, j))
                    pairs += i * size
                for i in range(0, count, TILE):
                    for k in range(0, width, LANES):
                        multiply_tile(
                            count, (out + (i * wide + k) * 4, wide, other + i * long * 4, long, rows + k * 4, wide)
                        )
                if ahead:
                    if half:
                        _widen(width, rows + tall * wide * 4, dots)
                        add_row(width, (out, rows + tall * wide * 4, np.float32(1.0)))
                    else:
                        add_row(width, (out, dots, np.float32(1.0)))
                for i in range(count):
                    to = grad + sample + i * width * size
                    if half:
                        copy_row_bf16(width, (to, out + i * wide * 4, np.float32(1.0)))
                    else:
                        copy_row(width, (to, out + i * wide * 4))

    return numba.cfunc(types.void(types.CPointer(_RECORD)), cache=True, error_model="numpy")(worker)


def dots(vectors: Tensor, ahead: bool = False) -> Tensor:
    """See :func:`slipstream.kernels.reference.dots`; of a type of :data:`DTYPES`."""
    vectors = _vectors(vectors)
    batch, count, dim = vectors.shape
    out = vectors.new_empty(batch, count * (count - 1) // 2 + (dim if ahead else 0))
    _run(vectors, out, ahead, None)
    return out


def dots_gradients(vectors: Tensor, gradients: Tensor, ahead: bool = False) -> Tensor:
    """See :func:`slipstream.kernels.reference.dots_gradients`; of a type of :data:`DTYPES`."""
    vectors = _vectors(vectors)
    batch, count, dim = vectors.shape
    shape = batch, count * (count - 1) // 2 + (dim if ahead else 0)
    if gradients.shape != shape or gradients.dtype != vectors.dtype:
        raise UnsupportedOption(
            f"{gradients.dtype} {tuple(gradients.shape)} are no gradients of {vectors.dtype} dot products {shape}"
        )
    if gradients.stride(1) != 1:
        gradients = gradients.contiguous()
    out = torch.empty_like(vectors)
    _run(vectors, gradients, ahead, out)
    return out


def _vectors(vectors: Tensor) -> Tensor:
    if vectors.dim() != 3 or not vectors.shape[1] or vectors.dtype not in DTYPES:
        shape = f"{vectors.dtype} {tuple(vectors.shape)}"
        raise UnsupportedOption(f"dot products are of float32 or bfloat16 [B, V, D], not of {shape}")
    return vectors.contiguous()


def _run(vectors: Tensor, dots: Tensor, ahead: bool, grad: Tensor | None) -> None:
    if not vectors.shape[0]:
        return
    counter, arguments = np.zeros(1, np.int64), np.zeros(1, ARGUMENTS)
    record = arguments[0]
    record["counter"] = counter.ctypes.data
    record["batch_size"], record["count"], record["dim"] = vectors.shape
    record["vectors"], record["grad"] = vectors.data_ptr(), 0 if grad is None else grad.data_ptr()
    record["dots"], record["stride"], record["ahead"] = dots.data_ptr(), dots.stride(0), ahead
    worker = _worker(specialised(vectors.shape[2]), vectors.dtype == torch.bfloat16)
    products = vectors.numel() * vectors.shape[1]
    parallel.run(worker.address, arguments, torch.get_num_threads() if products > ALONE else 1)
