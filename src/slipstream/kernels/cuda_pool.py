"""Gather and pool on a GPU: one launch for all features, a tile of samples (or bags) and elements for each program.

Tables are reached through a list of addresses, so they may have any number and size. Every output element is written
by one program, which adds a bag's rows in their order: results are the same in every run.
"""

# Triton compiles what pyright cannot follow.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from slipstream.kernels.cuda_note import note_outside

FEATURE_FIELDS = 3
"""int64 numbers of a feature: address of its table, rows, padding row."""
_FIELDS = tl.constexpr(FEATURE_FIELDS)
UNROLL = tl.constexpr(4)
"""Lookups of a bag whose rows are on their way at the same time."""


@triton.jit
def row_pointers(base, rows, D: tl.constexpr, TYPE: tl.constexpr, SIZE: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to the first elements of rows (int64) of tables at addresses ``base`` (int64), same shape.

    ALIGNED promises that all rows begin at multiples of 16 bytes, which lets a thread load 16 at once.
    """
    pointer = (base + rows * (D * SIZE)).to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit(do_not_specialize=["size", "count", "sample_stride", "feature_stride"])
def pool_one_hot(
    features,
    ids,
    out,
    flag,
    size,
    count,
    sample_stride,
    feature_stride,
    D: tl.constexpr,
    TYPE: tl.constexpr,
    SIZE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``out[b, f] = table_f[ids[b, f]]``; ids outside their table are noted and give zeros.

    Grid: (tiles of BLOCK lookups of the B * F, tiles of BLOCK_D elements).
    """
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = item < size.to(tl.int64) * count
    sample, feature = item // count, item % count
    row = tl.load(ids + sample * sample_stride + feature * feature_stride, mask=mask, other=0).to(tl.int64)
    rows = tl.load(features + feature * _FIELDS + 1, mask=mask, other=0)
    bad = mask & ((row < 0) | (row >= rows))
    note_outside(flag, bad, feature, sample, row, rows, 0)
    base = tl.load(features + feature * _FIELDS, mask=mask, other=0)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (column < D)[None, :]
    source = row_pointers(base, tl.where(bad, 0, row), D, TYPE, SIZE, ALIGNED)
    value = tl.load(source[:, None] + column[None, :], mask=(mask & (bad == 0))[:, None] & inside, other=0.0)
    tl.store(out + item[:, None] * D + column[None, :], value.to(out.dtype.element_ty), mask=mask[:, None] & inside)


@triton.jit
def bag_range(offsets, bag, mask, length):
    """Begin and end of bags (int64), pushed into 0 … ``length``, and whether the offsets were wrong."""
    begin = tl.load(offsets + bag, mask=mask, other=0).to(tl.int64)
    end = tl.load(offsets + bag + 1, mask=mask, other=0).to(tl.int64)
    wrong = mask & ((begin < 0) | (end > length) | (end < begin))
    begin = tl.minimum(tl.maximum(begin, 0), length)
    return begin, tl.minimum(tl.maximum(end, begin), length), wrong


@triton.jit(do_not_specialize=["size", "count", "length"])
def pool_bags(
    features,
    ids,
    offsets,
    sample_weights,
    out,
    flag,
    size,
    count,
    length,
    WEIGHTED: tl.constexpr,
    MEAN: tl.constexpr,
    D: tl.constexpr,
    TYPE: tl.constexpr,
    SIZE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``out[b, f]`` = the sum (or mean) over bag (f, b) of table rows times their factors; padding left out.

    Grid: (tiles of BLOCK bags, feature after feature, tiles of BLOCK_D elements).
    """
    bag = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = bag < size.to(tl.int64) * count
    feature, sample = bag // size, bag % size
    begin, end, wrong = bag_range(offsets, bag, mask, length)
    note_outside(flag, wrong, feature, sample, bag, tl.zeros_like(bag) + length, 4)
    base = tl.load(features + feature * _FIELDS, mask=mask, other=0)
    rows = tl.load(features + feature * _FIELDS + 1, mask=mask, other=0)
    padding = tl.load(features + feature * _FIELDS + 2, mask=mask, other=0)
    first = tl.load(offsets + feature * size, mask=mask, other=0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (column < D)[None, :]
    total = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    used = tl.zeros([BLOCK], tl.int32)
    outside = tl.full([BLOCK], -1, tl.int64)  # position of the first id outside its table, and the id
    outside_id = tl.zeros([BLOCK], tl.int64)
    longest = tl.max(end - begin, 0)
    for start in range(0, longest, UNROLL):
        for ahead in tl.static_range(UNROLL):
            place = begin + start + ahead
            alive = mask & (place < end)
            row = tl.load(ids + place, mask=alive, other=0).to(tl.int64)
            alive = alive & (row != padding)
            bad = alive & ((row < 0) | (row >= rows))
            outside_id = tl.where(bad & (outside < 0), row, outside_id)
            outside = tl.where(bad & (outside < 0), place - first, outside)
            alive = alive & (bad == 0)
            source = row_pointers(base, tl.where(alive, row, 0), D, TYPE, SIZE, ALIGNED)
            value = tl.load(source[:, None] + column[None, :], mask=alive[:, None] & inside, other=0.0)
            value = value.to(tl.float32)
            if WEIGHTED:
                value = value * tl.load(sample_weights + place, mask=alive, other=0.0)[:, None]
            total += value
            used += alive.to(tl.int32)
    note_outside(flag, outside >= 0, feature, outside, outside_id, rows, 0)
    if MEAN:
        total = total / tl.maximum(used, 1).to(tl.float32)[:, None]
    at = (sample * count + feature) * D
    tl.store(out + at[:, None] + column[None, :], total.to(out.dtype.element_ty), mask=mask[:, None] & inside)
