"""The lookups of an item of the row update: the rows that they update, each found once, and their summed gradients.

Where a gate, a bag or a factor can stand in the way, lookups that update nothing are sifted out first, without a branch
that depends on a gate: a processor guesses half-shut gates wrong. The gradients of the others are asked for while those
before them are added up. Rows already met are found by a hash table of the batch's size (it stays in cache; nothing is
kept per row).
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
    load_i64,
    load_id,
    load_u8,
    prefetch_near,
    prefetch_read,
    prefetch_write,
)
from slipstream.kernels.row_ops import add_row, set_row

GATE_AHEAD = 40
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
    "samples", "lookups", "table",
)  # fmt: skip
"""Lookups of one feature in one forward pass.

Without offsets one a sample; strides in elements; with offsets ``offsets`` is the address of the feature's B + 1. With
``samples`` (an address) they are drawn ones, and ``sample_weights`` their factors.
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
def _gate_is_open(gate: int, row: int, of_sample: int, salt: int) -> bool:
    value = np.uint64(load_u8(gate, row))
    is_open = value == np.uint64(255)
    if not is_open and value != np.uint64(0):
        is_open = mix(row + of_sample, salt) >> np.uint64(56) < value
    return is_open


@numba.njit(inline="always")
def _sift_column(
    base: int, table: Any, part: int, part_shift: int, salt: int, kept: Any, sources: Any, counts: Any
) -> int:
    """Keep those lookups of a block with one a sample that update a row of the item; returns how many.

    For each, ``kept`` holds the row and ``sources`` the address of the gradient. The table has a gate.
    """
    num_rows, gate, by_sample = table[1], table[4], table[11]
    ids, wide, id_stride, last = load_i64(base, 0), load_i64(base, 1), load_i64(base, 2), load_i64(base, 4) - 1
    source, grad_bytes, padding = load_i64(base, 5), load_i64(base, 6) * 4, load_i64(base, 9)
    lookups, bad, used = np.int64(0), np.int64(0), np.int64(0)
    for b in range(last + 1):
        # Of an id outside the table, too: prefetching never faults.
        prefetch_read(gate + load_id(ids, wide, min(b + GATE_AHEAD, last) * id_stride))
        row = load_id(ids, wide, b * id_stride)
        if row == padding:
            continue
        if row < 0 or row >= num_rows:
            bad += 1
            continue
        if _spread(row) >> np.uint64(part_shift) != np.uint64(part):
            continue
        lookups += 1
        kept[np.uint64(used)], sources[np.uint64(used)] = row, source + b * grad_bytes
        used += np.int64(_gate_is_open(gate, row, by_sample * ((b + 1) << SAMPLE_SHIFT), salt))
    counts[0] += lookups
    counts[1] += lookups - used
    counts[3] += bad
    return used


@numba.njit(inline="always")
def _sift_bags(
    base: int,
    table: Any,
    part: int,
    part_shift: int,
    salt: int,
    kept: Any,
    sources: Any,
    factors: Any,
    counts: Any,
) -> int:
    """The same for bags of lookups; ``factors`` holds the factor of each, and the table may have no gate."""
    num_rows, gate, by_sample = table[1], table[4], table[11]
    ids, wide, offsets, batch = load_i64(base, 0), load_i64(base, 1), load_i64(base, 3), load_i64(base, 4)
    source, grad_bytes = load_i64(base, 5), load_i64(base, 6) * 4
    sample_weights, mean, padding = load_i64(base, 7), load_i64(base, 8), load_i64(base, 9)
    last = load_i64(offsets, batch) - 1
    lookups, bad, used = np.int64(0), np.int64(0), np.int64(0)
    for b in range(batch):
        begin, end = load_i64(offsets, b), load_i64(offsets, b + 1)
        share = np.float32(1.0)
        if mean != 0 and end - begin > 1:
            in_bag = 0
            for j in range(begin, end):
                in_bag += load_id(ids, wide, j) != padding
            share = np.float32(1.0) / np.float32(max(in_bag, 1))
        for j in range(begin, end):
            if gate != 0:
                prefetch_read(gate + load_id(ids, wide, min(j + GATE_AHEAD, last)))
            row = load_id(ids, wide, j)
            if row == padding:
                continue
            if row < 0 or row >= num_rows:
                bad += 1
                continue
            if _spread(row) >> np.uint64(part_shift) != np.uint64(part):
                continue
            lookups += 1
            kept[np.uint64(used)], sources[np.uint64(used)] = row, source + b * grad_bytes
            factors[np.uint64(used)] = share if sample_weights == 0 else share * load_f32(sample_weights, j)
            used += np.int64(gate == 0 or _gate_is_open(gate, row, by_sample * ((b + 1) << SAMPLE_SHIFT), salt))
    counts[0] += lookups
    counts[1] += lookups - used
    counts[3] += bad
    return used


@numba.njit(inline="always")
def _sift_drawn(
    base: int, table: Any, part: int, part_shift: int, salt: int, kept: Any, sources: Any, factors: Any, counts: Any
) -> int:
    """The same for lookups that were drawn, each with its sample and factor."""
    num_rows, gate, by_sample = table[1], table[4], table[11]
    ids, source, grad_bytes = load_i64(base, 0), load_i64(base, 5), load_i64(base, 6) * 4
    drawn, samples, number = load_i64(base, 7), load_i64(base, 10), load_i64(base, BLOCK - 2)
    lookups, bad, used = np.int64(0), np.int64(0), np.int64(0)
    for j in range(number):
        row = load_i64(ids, j)
        if row < 0 or row >= num_rows:
            bad += 1
            continue
        if _spread(row) >> np.uint64(part_shift) != np.uint64(part):
            continue
        lookups += 1
        b = load_i64(samples, j)
        kept[np.uint64(used)], sources[np.uint64(used)] = row, source + b * grad_bytes
        factors[np.uint64(used)] = load_f32(drawn, j)
        used += np.int64(gate == 0 or _gate_is_open(gate, row, by_sample * ((b + 1) << SAMPLE_SHIFT), salt))
    counts[0] += lookups
    counts[1] += lookups - used
    counts[3] += bad
    return used


@numba.njit(inline="always")
def _ask_for(address: int, size: int) -> None:
    for line in range(0, size, 64):
        prefetch_near(address + line)


@numba.njit(inline="always")
def _add(
    row: int,
    source: int,
    factor: float,
    unique: int,
    table: Any,
    width: int,
    early: int,
    first_bytes: int,
    second_bytes: int,
    mask: int,
    direct: bool,
    slots: Any,
    rows: Any,
    sums: int,
) -> int:
    """Add a lookup's gradient to the sum of its row; returns how many rows there are now, after ``unique`` before."""
    row_bytes = width * 4
    slot = np.uint64(row) if direct else _spread(row) & mask
    u = np.int64(slots[slot])
    if not direct:
        while u >= 0 and rows[np.uint64(u)] != row:
            slot = (slot + np.uint64(1)) & mask
            u = np.int64(slots[slot])
    if u >= 0:
        add_row(width, (sums + u * row_bytes, source, factor))
    else:
        slots[slot] = unique
        rows[np.uint64(unique)] = row
        set_row(width, (sums + unique * row_bytes, source, factor))
        if unique < early:
            weight, first, second = table[0], table[2], table[3]
            for line in range(0, row_bytes, 64):
                prefetch_write(weight + row * row_bytes + line)
            for line in range(0, first_bytes, 64):
                prefetch_write(first + row * first_bytes + line)
            for line in range(0, second_bytes, 64):
                prefetch_write(second + row * second_bytes + line)
        unique += 1
    return unique


@numba.njit(inline="always")
def reduce_lookups(
    blocks: int,
    table: Any,
    part: int,
    part_shift: int,
    salt: int,
    width: int,
    early: int,
    first_bytes: int,
    second_bytes: int,
    kept: Any,
    sources: Any,
    factors: Any,
    slots: Any,
    rows: Any,
    sums: int,
    counts: Any,
) -> int:
    """The distinct ``rows`` of an item, in the order in which they are met, and the ``sums`` of their gradients.

    The first ``early`` rows are asked for as they are found, so that their memory travels while lookups are compared.
    ``first_bytes`` and ``second_bytes`` are what each state takes of a row, 0 for none. ``kept``, ``sources``,
    ``factors`` and ``slots`` are room to work in. Returns the number of rows.
    """
    row_bytes, num_rows = width * 4, table[1]
    ahead = max(np.int64(GRAD_AHEAD), np.int64(GRAD_AHEAD_BYTES) // row_bytes)
    mask, direct = _clear_slots(blocks, table, slots)
    unique = np.int64(0)
    for s in range(table[7], table[8]):
        base = blocks + s * BLOCK * 8
        batch = load_i64(base, 4)
        drawn = load_i64(base, 10) != 0
        if table[4] == 0 and load_i64(base, 3) == 0 and not drawn:
            # All lookups update a row, one a sample: nothing is sifted, and gradients are found by counting.
            ids, wide, id_stride, padding = load_i64(base, 0), load_i64(base, 1), load_i64(base, 2), load_i64(base, 9)
            grad, grad_bytes = load_i64(base, 5), load_i64(base, 6) * 4
            lookups, bad = np.int64(0), np.int64(0)
            for b in range(batch):
                if b + ahead < batch:
                    _ask_for(grad + (b + ahead) * grad_bytes, row_bytes)
                row = load_id(ids, wide, b * id_stride)
                if row == padding:
                    continue
                if row < 0 or row >= num_rows:
                    bad += 1
                    continue
                if _spread(row) >> np.uint64(part_shift) != np.uint64(part):
                    continue
                lookups += 1
                unique = _add(
                    row, grad + b * grad_bytes, np.float32(1.0), unique, table, width, early, first_bytes, second_bytes,
                    mask, direct, slots, rows, sums,
                )  # fmt: skip
            counts[0] += lookups
            counts[3] += bad
            continue
        if load_i64(base, 3) == 0 and not drawn:
            used = _sift_column(base, table, part, part_shift, salt, kept, sources, counts)
            for e in range(used):
                if e + ahead < used:
                    _ask_for(sources[np.uint64(e + ahead)], row_bytes)
                unique = _add(
                    kept[np.uint64(e)], sources[np.uint64(e)], np.float32(1.0), unique, table, width, early,
                    first_bytes, second_bytes, mask, direct, slots, rows, sums,
                )  # fmt: skip
        else:
            if drawn:
                used = _sift_drawn(base, table, part, part_shift, salt, kept, sources, factors, counts)
            else:
                used = _sift_bags(base, table, part, part_shift, salt, kept, sources, factors, counts)
            for e in range(used):
                if e + ahead < used:
                    _ask_for(sources[np.uint64(e + ahead)], row_bytes)
                unique = _add(
                    kept[np.uint64(e)], sources[np.uint64(e)], factors[np.uint64(e)], unique, table, width, early,
                    first_bytes, second_bytes, mask, direct, slots, rows, sums,
                )  # fmt: skip
    counts[2] = unique
    return unique


@numba.njit(inline="always")
def _clear_slots(blocks: int, table: Any, slots: Any) -> Any:
    """Empty the hash table for a table's lookups.

    Returns its mask, and whether rows are their own slots: the ids of a small table need no hash.
    """
    num_rows = table[1]
    total = 0
    for s in range(table[7], table[8]):
        total += load_i64(blocks + s * BLOCK * 8, BLOCK - 2)
    bits = 1
    while (1 << bits) < 2 * total:
        bits += 1
    direct = num_rows <= (1 << bits)
    slots[: num_rows if direct else (1 << bits)] = -1
    return np.uint64((1 << bits) - 1), direct
