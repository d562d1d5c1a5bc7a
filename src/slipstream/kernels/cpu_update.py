"""The fused row update on the CPU: gate, de-duplicate, reduce, apply the optimizer, write, in one pass.

Work is shared out as items (table, part): an item owns the rows of its table whose hash falls into its part, so each
row belongs to exactly one thread. An item

1. scans its table's lookups in sample order, keeps those whose row is its own and whose gate is open, finds
   duplicates, and sums the gradients of each row in that order (:mod:`slipstream.kernels.cpu_lookups`);
2. updates each row, while the rows to come are prefetched.

The order of every sum is that of the samples, so results are bit-identical for any number of threads and parts.
"""

# Numba compiles what pyright cannot follow: intrinsics take fewer arguments than their definitions show.
# pyright: basic, reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false, reportArgumentType=false
from __future__ import annotations

import math
from functools import cache
from typing import Any

import numba
import numpy as np
from numba import carray, types

from slipstream.kernels.cpu_lookups import TABLE, mix, reduce_lookups
from slipstream.kernels.intrinsics import (
    address_of,
    fetch_add,
    load_f32,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    pointer_f64,
    pointer_i64,
    prefetch_near,
    prefetch_write,
    store_f32,
    store_i32,
    store_u16,
)
from slipstream.kernels.row_ops import (
    adagrad_row,
    adam_row,
    add_row,
    copy_row,
    momentum_row,
    scale_row,
    sgd_row,
    squared_norm,
)
from slipstream.kernels.signal_ops import TRAIL_BYTES, counted, moments_code, trail_code
from slipstream.kernels.sources import digest
from slipstream.kernels.types import Rule

AHEAD = 16
"""Rows by which prefetching runs ahead of the update."""
EARLY_BYTES = 32 << 10
"""Rows and their state that are asked for as soon as their lookup is found: a first-level cache, since more of them at
once, beside gradients and sums, only wait for one another."""

ARGUMENTS = np.dtype(
    [
        ("counter", "i8"),  # address of the int64 that hands out items
        ("num_items", "i8"),
        ("parts", "i8"),  # of each table; a power of two
        ("tables", "i8"),  # address of int64 [T, 12], see TABLE_FIELDS
        ("order", "i8"),  # address of int64 [T]: the tables in the order in which they are handed out
        ("scales", "i8"),  # address of float32 [T]
        ("blocks", "i8"),  # address of int64 [S, 13], see BLOCK_FIELDS: S features of forward passes, sorted by table
        ("max_lookups", "i8"),  # of a table
        ("counts", "i8"),  # address of int64 [num_items, 4]: lookups, skipped, rows, lookups outside the table
        ("norms", "i8"),  # address of float64 [num_items]: sum of squares (rule NORM)
        ("measured", "i8"),  # 1 in steps that write signals, else 0
        ("corrections", "i8"),  # address of float32 [256], of the moments' signal by count
        ("dim", "i8"),
        ("step", "i8"),
        ("step_hash", "u8"),  # the part of the gate's hash that all rows share, before the table's seed
        ("decoupled", "i8"),
        ("lr", "f4"),
        ("eps", "f4"),
        ("beta1", "f4"),
        ("beta2", "f4"),
        ("one_minus_beta1", "f4"),  # rounded from float64, as torch does
        ("one_minus_beta2", "f4"),
        ("weight_decay", "f4"),
        ("shrink", "f8"),  # 1 - lr * weight_decay; next to 1 float32 would spoil its powers
        ("step_size", "f4"),  # Adam: lr * sqrt(1 - beta2^step) / (1 - beta1^step)
    ],
    align=True,
)
_RECORD = numba.from_dtype(ARGUMENTS)


@cache
def update_worker(rule: int, dim: int) -> Any:
    """The worker for one rule and rows of ``dim`` elements, compiled once (and kept on disk).

    ``dim`` 0 reads it from the arguments.
    """
    fixed_dim = np.int64(dim)
    source_digest = digest()
    norm, sgd, adagrad = rule == Rule.NORM, rule == Rule.SGD, rule == Rule.ADAGRAD
    rowwise, adam = rule == Rule.ROWWISE_ADAGRAD, rule == Rule.ADAM

    def worker(pointer: Any) -> None:
        _ = source_digest  # part of the cache's key
        a = carray(pointer, 1)[0]
        # Local copies: what is read through the record might alias what is written, and would keep loops from
        # being vectorised.
        width = fixed_dim if fixed_dim > 0 else np.int64(a.dim)
        row_bytes = width * 4
        counter, num_items, parts, tables, scales, blocks = (
            a.counter,
            a.num_items,
            a.parts,
            a.tables,
            a.scales,
            a.blocks,
        )
        lr, eps, beta1, beta2, decay, step = a.lr, a.eps, a.beta1, a.beta2, a.weight_decay, a.step
        fresh1, fresh2, shrink, step_size = a.one_minus_beta1, a.one_minus_beta2, a.shrink, a.step_size
        decoupled = a.decoupled != 0
        wrapped = ((step + 2147483648) & 4294967295) - 2147483648
        counts = carray(pointer_i64(a.counts), (num_items, 4))
        norms = carray(pointer_f64(a.norms), num_items)
        part_shift = 32
        while (1 << (32 - part_shift)) < parts:
            part_shift -= 1
        size = a.max_lookups
        kept, sources, factors = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.float32)
        rows = np.empty(size, np.int64)
        sums = np.empty(size * width, np.float32)
        slots = np.empty(4 * size + 4, np.int32)
        before = np.empty(width, np.float32)
        corrections, order = a.corrections, a.order
        while True:
            number = fetch_add(counter, 1)
            if number >= num_items:
                break
            # Taken in the loop, where it keeps the arrays: Numba frees one after its last use, whoever has its address.
            sums_address, before_address = address_of(sums), address_of(before)
            t = load_i64(order, number // parts)
            part = number % parts
            item = t * parts + part
            table = carray(pointer_i64(tables + t * TABLE * 8), TABLE)
            salt = np.uint64(a.step_hash) + np.uint64(table[6])
            first_bytes = row_bytes if ((sgd and table[2] != 0) or adagrad or adam) else np.int64(4 if rowwise else 0)
            second_bytes = row_bytes if adam else np.int64(0)
            early = 0 if norm else EARLY_BYTES // (row_bytes + first_bytes + second_bytes)
            unique = reduce_lookups(
                blocks, table, part, part_shift, salt, width, early, first_bytes, second_bytes, kept, sources, factors,
                slots, rows, sums_address, counts[item],
            )  # fmt: skip
            scale = load_f32(scales, t)
            weight, first, second, last_step = table[0], table[2], table[3], table[5]
            signal, trail = table[9] * a.measured, table[10]
            thinned = table[4] * table[11]  # the gate, where what is kept of a row weighs more
            for u in range(unique):
                if u + AHEAD < unique and not norm:
                    soon = rows[u + AHEAD] * row_bytes
                    for line in range(0, row_bytes, 64):
                        prefetch_near(weight + soon + line)
                    if signal != 0:
                        prefetch_write(signal + rows[u + AHEAD] * 2)
                        if not adam:
                            prefetch_write(trail + rows[u + AHEAD] * TRAIL_BYTES)
                            prefetch_write(trail + rows[u + AHEAD] * TRAIL_BYTES + TRAIL_BYTES - 4)
                    for line in range(0, first_bytes, 64):
                        prefetch_near(first + rows[u + AHEAD] * first_bytes + line)
                    for line in range(0, second_bytes, 64):
                        prefetch_near(second + soon + line)
                g = sums_address + u * row_bytes
                if scale != np.float32(1.0):
                    scale_row(width, (g, scale))
                if thinned != 0:
                    level = load_u8(thinned, rows[u])
                    if level != 255:
                        scale_row(width, (g, np.float32(256.0) / np.float32(level)))
                if norm:
                    norms[item] += squared_norm(width, (g,))
                    continue
                row = rows[u]
                w = weight + row * row_bytes
                waited = np.float64(0.0)
                if last_step != 0:
                    # Steps are kept in 32 bits: beyond 2^31 they wrap, and so does their difference.
                    since = step - 1 - np.int64(load_i32(last_step, row))
                    since = ((since + 2147483648) & 4294967295) - 2147483648
                    waited = np.float64(max(since, 0))
                    store_i32(last_step, row, np.int32(wrapped))
                if decoupled:
                    keep = np.float32(shrink)
                    if waited > 0:
                        keep = np.float32(math.pow(shrink, waited + 1.0))
                    scale_row(width, (w, keep))
                elif decay != np.float32(0.0):
                    add_row(width, (g, w, decay))
                if not adam and signal != 0:
                    copy_row(width, (before_address, w))
                if sgd:
                    if first != 0:
                        keep = beta1
                        if waited > 0:
                            keep = np.float32(math.pow(np.float64(beta1), waited + 1.0))
                        momentum_row(width, (first + row * row_bytes, g, keep))
                    sgd_row(width, (w, g, lr))
                if adagrad:
                    adagrad_row(width, (w, first + row * row_bytes, g, lr, eps))
                if rowwise:
                    total = load_f32(first, row) + np.float32(squared_norm(width, (g,)) / width)
                    store_f32(first, row, total)
                    sgd_row(width, (w, g, lr / (np.sqrt(total) + eps)))
                if adam:
                    m = first + row * row_bytes
                    v = second + row * row_bytes
                    if waited > 0:
                        scale_row(width, (m, np.float32(math.pow(np.float64(beta1), waited))))
                        scale_row(width, (v, np.float32(math.pow(np.float64(beta2), waited))))
                    adam_row(width, (w, m, v, g, fresh1, fresh2, step_size, eps))
                if signal != 0:
                    steps = np.int64(load_u16(signal, row)) & 255
                    steps = counted(steps, mix(row, salt) if steps >= 128 else np.uint64(0))
                    if adam:
                        code = moments_code(width, (m, v, load_f32(corrections, steps)))
                    else:
                        code = trail_code(width, (w, before_address, trail + row * TRAIL_BYTES))
                    store_u16(signal, row, np.uint16((code << 8) | steps))

    # numpy's error model: a division needs no check for zero.
    return numba.cfunc(types.void(types.CPointer(_RECORD)), cache=True, error_model="numpy")(worker)
