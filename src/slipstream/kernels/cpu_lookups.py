"""The lookups of an item of the row update: which rows they update, each found once, in sample order.

Rows already met are found by a hash table of the batch's size (it stays in cache; nothing is kept per row).
"""

# Numba compiles what pyright cannot follow: intrinsics take fewer arguments than their definitions show.
# pyright: basic, reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false, reportArgumentType=false
from __future__ import annotations

from typing import Any

import numba
import numpy as np

from slipstream.kernels.hashing import KEY_FACTOR, MIX_1, MIX_2, SAMPLE_SHIFT
from slipstream.kernels.intrinsics import (
    load_f32,
    load_i32,
    load_i64,
    load_u8,
    prefetch_near,
    prefetch_read,
    prefetch_write,
)
from slipstream.kernels.row_ops import add_row, copy_row

GATE_AHEAD = 16
"""Samples by which prefetching of gates runs ahead."""
GRAD_AHEAD, GRAD_AHEAD_BYTES = 16, 4096
"""Lookups by which prefetching of gradients runs ahead of their sum: at least so many, and rows of so many bytes."""

TABLE_FIELDS = (
    "weight", "rows", "first", "second", "gate", "last_step", "seed_hash", "first_block", "end_block", "signal",
    "trail", "by_sample",
)  # fmt: skip
"""Addresses (0 for none), number of rows, hash of the seed, the table's range of blocks, and whether gates draw by the
sample (1 or 0)."""
BLOCK_FIELDS = (
    "ids", "wide", "id_stride", "offsets", "batch_size", "grad", "grad_stride", "sample_weights", "mean", "padding",
    "lookups", "table",
)  # fmt: skip
"""Lookups of one feature in one forward pass.

Without offsets one a sample; strides in elements; with offsets ``offsets`` is the address of the feature's B + 1.
"""
TABLE, BLOCK = len(TABLE_FIELDS), len(BLOCK_FIELDS)


@numba.njit(inline="always")
def mix(row: int, salt: int) -> int:
    """The hash of :mod:`slipstream.kernels.hashing`, uint64."""
    x = np.uint64(row) * np.uint64(KEY_FACTOR) + np.uint64(salt)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_2)
    return x ^ (x >> np.uint64(31))


@numba.njit(inline="always")
def _spread(row: int) -> int:
    """32 well-mixed bits of a row, for parts and the hash table (cheaper than the gate's hash)."""
    return (np.uint64(row) * np.uint64(KEY_FACTOR)) >> np.uint64(32)


@numba.njit(inline="always")
def _load_id(base: int, wide: int, index: int) -> int:
    return load_i64(base, index) if wide else np.int64(load_i32(base, index))


@numba.njit(cache=True)
def _gate_is_open(gate: int, row: int, of_sample: int, salt: int) -> bool:
    value = load_u8(gate, row)
    if value == 255 or value == 0:
        return value == 255
    return (mix(row + of_sample, salt) >> np.uint64(56)) < np.uint64(value)


@numba.njit(inline="always")
def gradients_ahead(row_bytes: int) -> int:
    """Lookups by which prefetching of gradients runs ahead."""
    return max(np.int64(GRAD_AHEAD), np.int64(GRAD_AHEAD_BYTES) // row_bytes)


@numba.njit(inline="always")
def clear_slots(blocks: int, table: Any, slots: Any) -> Any:
    """Empty the hash table for a table's lookups.

    Returns its mask, and whether rows are their own slots: the ids of a small table need no hash.
    """
    num_rows = table[1]
    total = 0
    for s in range(table[7], table[8]):
        total += load_i64(blocks + s * BLOCK * 8, 10)
    bits = 1
    while (1 << bits) < 2 * total:
        bits += 1
    direct = num_rows <= (1 << bits)
    slots[: num_rows if direct else (1 << bits)] = -1
    return np.uint64((1 << bits) - 1), direct


@numba.njit(inline="always")
def collect(
    blocks: int,
    table: Any,
    part: int,
    part_shift: int,
    salt: int,
    rows: Any,
    owners: Any,
    sources: Any,
    factors: Any,
    slots: Any,
    counts: Any,
) -> Any:
    """Step 1: the lookups of an item that update a row, and their distinct ``rows``.

    For each lookup, in sample order, ``owners`` holds the position of its row, ``sources`` the address of its gradient
    and ``factors`` its factor. Returns the number of lookups and of rows.
    """
    num_rows, gate, by_sample = table[1], table[4], table[11]
    lookups, skipped, bad, used, unique = 0, 0, 0, 0, 0
    one_part = part_shift >= 32
    mask, direct = clear_slots(blocks, table, slots)
    for s in range(table[7], table[8]):
        base = blocks + s * BLOCK * 8
        ids, wide, id_stride, offsets = load_i64(base, 0), load_i64(base, 1), load_i64(base, 2), load_i64(base, 3)
        batch, grad, grad_bytes = load_i64(base, 4), load_i64(base, 5), load_i64(base, 6) * 4
        sample_weights, mean, padding = load_i64(base, 7), load_i64(base, 8), load_i64(base, 9)
        for b in range(batch):
            begin, end = b, b + 1
            of_sample = by_sample * ((b + 1) << SAMPLE_SHIFT)
            share = np.float32(1.0)
            if offsets != 0:
                begin, end = load_i64(offsets, b), load_i64(offsets, b + 1)
                if mean != 0 and end - begin > 1:
                    in_bag = 0
                    for j in range(begin, end):
                        in_bag += _load_id(ids, wide, j * id_stride) != padding
                    share = np.float32(1.0) / np.float32(max(in_bag, 1))
            if gate != 0 and offsets == 0 and b + GATE_AHEAD < batch:
                soon = _load_id(ids, wide, (b + GATE_AHEAD) * id_stride)
                if 0 <= soon < num_rows:
                    prefetch_read(gate + soon)
            for j in range(begin, end):
                row = _load_id(ids, wide, j * id_stride)
                if row == padding:
                    continue
                if row < 0 or row >= num_rows:
                    bad += 1
                    continue
                spread = _spread(row)
                if not one_part and spread >> np.uint64(part_shift) != np.uint64(part):
                    continue
                lookups += 1
                if gate != 0 and not _gate_is_open(gate, row, of_sample, salt):
                    skipped += 1
                    continue
                slot = np.uint64(row) if direct else spread & mask
                while True:
                    u = slots[slot]
                    if u < 0:
                        u = unique
                        slots[slot] = u
                        rows[u] = row
                        unique += 1
                        break
                    if rows[u] == row:
                        break
                    slot = (slot + np.uint64(1)) & mask
                owners[used] = u
                sources[used] = grad + b * grad_bytes
                factors[used] = share if sample_weights == 0 else share * load_f32(sample_weights, j)
                used += 1
    counts[0], counts[1], counts[2], counts[3] = lookups, skipped, unique, bad
    return used, unique


@numba.njit(inline="always")
def all_one_hot(blocks: int, table: Any) -> bool:
    """Whether no lookup has a gate, a bag or a factor: then :func:`sum_one_hot` does."""
    for s in range(table[7], table[8]):
        base = blocks + s * BLOCK * 8
        if load_i64(base, 3) != 0 or load_i64(base, 7) != 0:
            return False
    return table[4] == 0


@numba.njit(inline="always")
def sum_one_hot(
    blocks: int,
    table: Any,
    part: int,
    part_shift: int,
    width: int,
    early: int,
    first_bytes: int,
    second_bytes: int,
    rows: Any,
    sums: int,
    slots: Any,
    counts: Any,
) -> int:
    """:func:`collect` and the sum of the gradients at once, for lookups without gates, bags and factors.

    The first ``early`` rows are asked for as they are found, so that their memory travels while lookups are compared.
    ``first_bytes`` and ``second_bytes`` are what each state takes of a row, 0 for none. Returns the number of rows.
    """
    num_rows, weight, first, second = table[1], table[0], table[2], table[3]
    row_bytes = width * 4
    ahead = gradients_ahead(row_bytes)
    lookups, bad, unique = 0, 0, 0
    one_part = part_shift >= 32
    mask, direct = clear_slots(blocks, table, slots)
    for s in range(table[7], table[8]):
        base = blocks + s * BLOCK * 8
        ids, wide, id_stride = load_i64(base, 0), load_i64(base, 1), load_i64(base, 2)
        batch, grad, grad_bytes, padding = (
            load_i64(base, 4),
            load_i64(base, 5),
            load_i64(base, 6) * 4,
            load_i64(base, 9),
        )
        for b in range(batch):
            if b + ahead < batch:
                soon = grad + (b + ahead) * grad_bytes
                for line in range(0, row_bytes, 64):
                    prefetch_near(soon + line)
            row = _load_id(ids, wide, b * id_stride)
            if row == padding:
                continue
            if row < 0 or row >= num_rows:
                bad += 1
                continue
            spread = _spread(row)
            if not one_part and spread >> np.uint64(part_shift) != np.uint64(part):
                continue
            lookups += 1
            slot = np.uint64(row) if direct else spread & mask
            u = np.int64(slots[slot])
            if not direct:
                while u >= 0 and rows[np.uint64(u)] != row:
                    slot = (slot + np.uint64(1)) & mask
                    u = np.int64(slots[slot])
            if u >= 0:
                add_row(width, (sums + u * row_bytes, grad + b * grad_bytes, np.float32(1.0)))
                continue
            slots[slot] = unique
            rows[np.uint64(unique)] = row
            copy_row(width, (sums + unique * row_bytes, grad + b * grad_bytes))
            if unique < early:
                for line in range(0, row_bytes, 64):
                    prefetch_write(weight + row * row_bytes + line)
                for line in range(0, first_bytes, 64):
                    prefetch_write(first + row * first_bytes + line)
                for line in range(0, second_bytes, 64):
                    prefetch_write(second + row * second_bytes + line)
            unique += 1
    counts[0], counts[1], counts[2], counts[3] = lookups, 0, unique, bad
    return unique
