"""The lookups of an item of the row update: the rows that they update, each found once, and their summed gradients.

Where a gate, a bag or a factor can stand in the way, lookups that update nothing are sifted out first, a few samples
at a time, and the gradients of the others are asked for: they travel while the next samples are sifted. Rows already
met are found by a hash table of the batch's size (it stays in cache; nothing is kept per row).
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
CHUNK, CHUNK_BYTES = 64, 16384
"""Samples that are sifted at a time: at least so many, and rows of so many bytes."""

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
def _gate_is_open(gate: int, row: int, of_sample: int, salt: int) -> bool:
    value = np.uint64(load_u8(gate, row))
    is_open = value == np.uint64(255)
    if not is_open and value != np.uint64(0):
        is_open = mix(row + of_sample, salt) >> np.uint64(56) < value
    return is_open


@numba.njit(inline="always")
def _sift(
    base: int,
    start: int,
    stop: int,
    table: Any,
    part: int,
    part_shift: int,
    salt: int,
    row_bytes: int,
    used: int,
    kept: Any,
    sources: Any,
    factors: Any,
    counts: Any,
) -> int:
    """Keep those lookups of samples ``start`` to ``stop`` of a block that update a row of the item.

    For each, ``kept`` holds the row, ``sources`` the address of the gradient and ``factors`` its factor. Returns how
    many there are now, after ``used`` before.
    """
    num_rows, gate, by_sample = table[1], table[4], table[11]
    lookups, bad, before = np.int64(0), np.int64(0), used
    ids, wide, id_stride, offsets = load_i64(base, 0), load_i64(base, 1), load_i64(base, 2), load_i64(base, 3)
    batch, grad, grad_bytes = load_i64(base, 4), load_i64(base, 5), load_i64(base, 6) * 4
    sample_weights, mean, padding = load_i64(base, 7), load_i64(base, 8), load_i64(base, 9)
    last = (batch if offsets == 0 else load_i64(offsets, batch)) - 1
    for b in range(start, stop):
        begin, end, had, source = b, b + 1, used, grad + b * grad_bytes
        of_sample = by_sample * ((b + 1) << SAMPLE_SHIFT)
        share = np.float32(1.0)
        if offsets != 0:
            begin, end = load_i64(offsets, b), load_i64(offsets, b + 1)
            if mean != 0 and end - begin > 1:
                in_bag = 0
                for j in range(begin, end):
                    in_bag += load_id(ids, wide, j * id_stride) != padding
                share = np.float32(1.0) / np.float32(max(in_bag, 1))
        for j in range(begin, end):
            row = load_id(ids, wide, j * id_stride)
            if gate != 0:  # of an id outside the table, too: prefetching never faults
                prefetch_read(gate + load_id(ids, wide, min(j + GATE_AHEAD, last) * id_stride))
            if row == padding:
                continue
            if row < 0 or row >= num_rows:
                bad += 1
                continue
            if _spread(row) >> np.uint64(part_shift) != np.uint64(part):
                continue
            lookups += 1
            if gate != 0 and not _gate_is_open(gate, row, of_sample, salt):
                continue
            kept[np.uint64(used)] = row
            sources[np.uint64(used)] = source
            factors[np.uint64(used)] = share if sample_weights == 0 else share * load_f32(sample_weights, j)
            used += 1
        if used > had:
            for line in range(0, row_bytes, 64):
                prefetch_near(source + line)
    counts[0] += lookups
    counts[1] += lookups - (used - before)
    counts[3] += bad
    return used


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
        if table[4] == 0 and load_i64(base, 3) == 0:
            # All lookups update a row, one a sample: nothing is sifted, and gradients are found by counting.
            ids, wide, id_stride, padding = load_i64(base, 0), load_i64(base, 1), load_i64(base, 2), load_i64(base, 9)
            grad, grad_bytes = load_i64(base, 5), load_i64(base, 6) * 4
            lookups, bad = np.int64(0), np.int64(0)
            for b in range(batch):
                if b + ahead < batch:
                    soon = grad + (b + ahead) * grad_bytes
                    for line in range(0, row_bytes, 64):
                        prefetch_near(soon + line)
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
        samples = max(np.int64(CHUNK), np.int64(CHUNK_BYTES) // row_bytes)
        done, used = np.int64(0), np.int64(0)
        for start in range(0, batch + samples, samples):  # a last turn for what the one before it kept
            ready = used
            used = _sift(
                base, start, min(start + samples, batch), table, part, part_shift, salt, row_bytes, used, kept, sources,
                factors, counts,
            )  # fmt: skip
            for e in range(done, ready):
                unique = _add(
                    kept[np.uint64(e)], sources[np.uint64(e)], factors[np.uint64(e)], unique, table, width, early,
                    first_bytes, second_bytes, mask, direct, slots, rows, sums,
                )  # fmt: skip
            done = ready
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
        total += load_i64(blocks + s * BLOCK * 8, 10)
    bits = 1
    while (1 << bits) < 2 * total:
        bits += 1
    direct = num_rows <= (1 << bits)
    slots[: num_rows if direct else (1 << bits)] = -1
    return np.uint64((1 << bits) - 1), direct
