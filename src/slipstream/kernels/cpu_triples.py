"""Ranking of pairs on the CPU: margins of (user, positive, negative) rows, their gradient, and the hardest candidate.

Autograd over the same rows in torch copies and adds whole tensors for each slice of them.
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
from slipstream.kernels import parallel, reference_triples
from slipstream.kernels.cpu_pool import specialised
from slipstream.kernels.cpu_records import integer
from slipstream.kernels.intrinsics import address_of, fetch_add, load_f32, load_id, prefetch_read, store_f32, store_i64
from slipstream.kernels.row_ops import copy_row, difference_row, dot, dot_of_difference, set_row
from slipstream.kernels.sources import digest

BLOCK = 32
"""Triples that a thread takes at a time."""
AHEAD = 16
"""Candidates by which prefetching runs ahead."""
SMALL = 1024
"""Triples below which a second thread costs more than it saves; candidates count as one each."""

ARGUMENTS = np.dtype(
    [
        ("counter", "i8"),  # address of the int64 that hands out blocks of triples
        ("count", "i8"),  # P
        ("dim", "i8"),
        ("rows", "i8"),  # address of float32 [P, 3, D]
        ("margins", "i8"),  # address of float32 [P]: margins, or their gradient
        ("grad", "i8"),  # address of float32 [P, 3, D]; 0: forward
    ],
    align=True,
)
HARDEST_ARGUMENTS = np.dtype(
    [
        ("counter", "i8"),
        ("count", "i8"),
        ("dim", "i8"),
        ("candidates", "i8"),  # K
        ("bad", "i8"),  # whether an id was outside its table
        ("user_weight", "i8"),
        ("num_users", "i8"),
        ("item_weight", "i8"),
        ("num_items", "i8"),
        ("users", "i8"),
        ("wide_users", "i8"),  # 1: int64, 0: int32
        ("items", "i8"),
        ("wide_items", "i8"),
        ("out", "i8"),  # address of int64 [P]
    ],
    align=True,
)
_RECORD, _HARDEST_RECORD = numba.from_dtype(ARGUMENTS), numba.from_dtype(HARDEST_ARGUMENTS)


@cache
def _worker(dim: int) -> Any:
    """The worker for rows of ``dim`` elements, compiled once (and kept on disk).

    ``dim`` 0 reads it from the arguments.
    """
    fixed_dim = np.int64(dim)
    source_digest = digest()

    def worker(pointer: Any) -> None:
        _ = source_digest  # part of the cache's key
        a = carray(pointer, 1)[0]
        width = fixed_dim if fixed_dim > 0 else np.int64(a.dim)
        counter, count, rows, margins, grad = a.counter, a.count, a.rows, a.margins, a.grad
        last, size = width - 1, width * 4
        while True:
            first = fetch_add(counter, 1) * BLOCK
            if first >= count:
                break
            for b in range(first, min(first + BLOCK, count)):
                user = rows + b * 3 * size
                better, worse = user + size, user + 2 * size
                if grad == 0:
                    bias = load_f32(better, last) - load_f32(worse, last)
                    store_f32(margins, b, dot_of_difference(last, (user, better, worse)) + bias)
                    continue
                g = load_f32(margins, b)
                to = grad + b * 3 * size
                # Whole rows, whose last element is then mended: masked stores are slow.
                difference_row(width, (to, better, worse, g))
                set_row(width, (to + size, user, g))
                set_row(width, (to + 2 * size, user, -g))
                store_f32(to, last, np.float32(0.0))
                store_f32(to + size, last, g)
                store_f32(to + 2 * size, last, -g)

    return numba.cfunc(types.void(types.CPointer(_RECORD)), cache=True, error_model="numpy")(worker)


@cache
def _hardest_worker(dim: int) -> Any:
    """The same for the hardest candidates."""
    fixed_dim = np.int64(dim)
    source_digest = digest()

    def worker(pointer: Any) -> None:
        _ = source_digest  # part of the cache's key
        a = carray(pointer, 1)[0]
        counter, count, candidates, out = a.counter, a.count, a.candidates, a.out
        user_weight, num_users, users, wide_users = a.user_weight, a.num_users, a.users, a.wide_users
        item_weight, num_items, items, wide_items = a.item_weight, a.num_items, a.items, a.wide_items
        width = fixed_dim if fixed_dim > 0 else np.int64(a.dim)
        size = width * 4
        factors = np.empty(width, np.float32)
        while True:
            user = address_of(factors)  # in the loop: an array is freed after its last use
            first = fetch_add(counter, 1) * BLOCK
            if first >= count:
                break
            end = min(first + BLOCK, count)
            j, last = first * candidates, end * candidates
            for soon in range(j, min(j + AHEAD, last)):
                _ask(item_weight + load_id(items, wide_items, soon) * size, size)
            for b in range(first, end):
                if b + 1 < end:
                    _ask(user_weight + load_id(users, wide_users, b + 1) * size, size)
                row = load_id(users, wide_users, b)
                if row < 0 or row >= num_users:
                    carray(pointer, 1)[0].bad = 1
                    break
                copy_row(width, (user, user_weight + row * size))
                store_f32(user, width - 1, np.float32(1.0))  # times the item's bias
                chosen, highest = np.int64(-1), np.float32(0.0)
                for j in range(b * candidates, (b + 1) * candidates):
                    if j + AHEAD < last:
                        _ask(item_weight + load_id(items, wide_items, j + AHEAD) * size, size)
                    row = load_id(items, wide_items, j)
                    if row < 0 or row >= num_items:
                        carray(pointer, 1)[0].bad = 1
                        break
                    score = dot(width, (user, item_weight + row * size))
                    if np.isnan(score):
                        score = np.float32(np.inf)
                    if chosen < 0 or score > highest:
                        chosen, highest = row, score
                store_i64(out, b, chosen)

    return numba.cfunc(types.void(types.CPointer(_HARDEST_RECORD)), cache=True, error_model="numpy")(worker)


@numba.njit(inline="always")
def _ask(row: int, size: int) -> None:
    """Prefetch a row, also one outside its table: that never faults."""
    for line in range(0, size, 64):
        prefetch_read(row + line)


def margins(rows: Tensor) -> Tensor:
    """See :func:`slipstream.kernels.reference_triples.margins`; float32."""
    rows = _triples(rows)
    out = rows.new_empty(rows.shape[0])
    _run(rows, out, None)
    return out


def margin_gradients(rows: Tensor, grad: Tensor) -> Tensor:
    """See :func:`slipstream.kernels.reference_triples.margin_gradients`; float32."""
    rows, grad = _triples(rows), grad.contiguous()
    if grad.dtype != torch.float32 or grad.shape != rows.shape[:1]:
        raise UnsupportedOption(f"{grad.dtype} {tuple(grad.shape)} is no gradient of {rows.shape[0]} float32 margins")
    out = torch.empty_like(rows)
    _run(rows, grad, out)
    return out


def hardest(user_weight: Tensor, item_weight: Tensor, users: Tensor, items: Tensor) -> Tensor:
    """See :func:`slipstream.kernels.reference_triples.hardest`; float32 tables."""
    reference_triples.check_candidates(user_weight, item_weight, users, items)
    user_weight, item_weight = user_weight.detach().contiguous(), item_weight.detach().contiguous()
    users, items = integer(users).contiguous(), integer(items).contiguous()
    out = torch.empty(users.shape[0], dtype=torch.int64)
    counter, arguments = np.zeros(1, np.int64), np.zeros(1, HARDEST_ARGUMENTS)
    record = arguments[0]
    record["counter"], record["count"], record["dim"] = counter.ctypes.data, users.shape[0], user_weight.shape[1]
    record["candidates"], record["out"] = items.shape[1], out.data_ptr()
    record["user_weight"], record["num_users"] = user_weight.data_ptr(), user_weight.shape[0]
    record["item_weight"], record["num_items"] = item_weight.data_ptr(), item_weight.shape[0]
    record["users"], record["wide_users"] = users.data_ptr(), users.dtype == torch.int64
    record["items"], record["wide_items"] = items.data_ptr(), items.dtype == torch.int64
    worker = _hardest_worker(specialised(user_weight.shape[1]))
    parallel.run(worker.address, arguments, torch.get_num_threads() if items.numel() > SMALL else 1)
    if record["bad"]:
        reference_triples.hardest(user_weight, item_weight, users, items)  # raises with the place
    return out


def _triples(rows: Tensor) -> Tensor:
    if rows.dim() != 3 or rows.shape[1] != 3 or not rows.shape[2] or rows.dtype != torch.float32:
        raise UnsupportedOption(f"triples of rows are float32 [P, 3, D], not {rows.dtype} {tuple(rows.shape)}")
    return rows.contiguous()


def _run(rows: Tensor, margins: Tensor, grad: Tensor | None) -> None:
    if not rows.numel():
        return
    counter, arguments = np.zeros(1, np.int64), np.zeros(1, ARGUMENTS)
    record = arguments[0]
    record["counter"], record["count"], record["dim"] = counter.ctypes.data, rows.shape[0], rows.shape[2]
    record["rows"], record["margins"] = rows.data_ptr(), margins.data_ptr()
    record["grad"] = 0 if grad is None else grad.data_ptr()
    worker = _worker(specialised(rows.shape[2]))
    parallel.run(worker.address, arguments, torch.get_num_threads() if rows.shape[0] > SMALL else 1)
