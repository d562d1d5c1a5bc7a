"""Counting on a GPU: accesses of rows, and the lookups of each input that hit marked rows."""

# Triton compiles what pyright cannot follow.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from slipstream.kernels.cuda_note import note_outside
from slipstream.kernels.cuda_pool import bag_range


@triton.jit(do_not_specialize=["count", "rows", "amount"])
def count_rows(counts, ids, flag, count, rows, amount, BLOCK: tl.constexpr):
    """Adds ``amount`` to ``counts[id]`` for each id; int32 counts stop at 2^31 - 1.

    Every addition to a row adds the same number, so their order does not show in the sum. Where one leaves a negative
    count, the same program then puts the end in its place. A launch adds less than 2^31 to a row, so that no count gets
    back to 0 by way of negative ones, and the last write to a row that went beyond its end is that end.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    row = tl.load(ids + at, mask=mask, other=0).to(tl.int64)
    bad = mask & ((row < 0) | (row >= rows))
    note_outside(flag, bad, tl.zeros_like(row), at, row, tl.zeros_like(row) + rows, 2)
    value = (tl.zeros([BLOCK], tl.float32) + amount).to(counts.dtype.element_ty)
    place, mask = counts + tl.where(bad, 0, row), mask & (bad == 0)
    before = tl.atomic_add(place, value, mask=mask, sem="relaxed")
    if counts.dtype.element_ty == tl.int32:
        end = tl.full([BLOCK], 2147483647, tl.int32)
        tl.atomic_xchg(place, end, mask=mask & ((before < 0) | (before > end - value)), sem="relaxed")


@triton.jit(do_not_specialize=["size", "count", "sample_stride", "feature_stride"])
def count_marked_one_hot(
    marks, ids, out, flag, size, count, sample_stride, feature_stride, BLOCK: tl.constexpr, BLOCK_F: tl.constexpr
):
    """Marked lookups of each input, int32 [B]; ``marks`` int64 [F, 2]: address of a table's marks (uint8), its rows.

    Grid: (tiles of BLOCK inputs).
    """
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, BLOCK_F).to(tl.int64)
    mask = (sample < size)[:, None] & (feature < count)[None, :]
    at = sample[:, None] * sample_stride + feature[None, :] * feature_stride
    row = tl.load(ids + at, mask=mask, other=0).to(tl.int64)
    rows = tl.load(marks + feature * 2 + 1, mask=feature < count, other=0)[None, :]
    bad = mask & ((row < 0) | (row >= rows))
    place = tl.zeros_like(row)
    shape: tl.constexpr = [BLOCK * BLOCK_F]
    note_outside(
        flag, tl.reshape(bad, shape), tl.reshape(place + feature[None, :], shape),
        tl.reshape(place + sample[:, None], shape), tl.reshape(row, shape), tl.reshape(place + rows, shape), 3,
    )  # fmt: skip
    base = tl.load(marks + feature * 2, mask=feature < count, other=0)[None, :]
    mark = tl.load((base + tl.where(bad, 0, row)).to(tl.pointer_type(tl.uint8)), mask=mask & (bad == 0), other=0)
    tl.store(out + sample, tl.sum((mark != 0).to(tl.int32), 1), mask=sample < size)


@triton.jit(do_not_specialize=["size", "length", "place"])
def count_marked_bags(marks, values, offsets, out, flag, size, length, place, BLOCK: tl.constexpr):
    """Adds to ``out`` the marked lookups of each bag of one feature, the ``place``-th of ``marks``.

    Grid: (tiles of BLOCK inputs).
    """
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = sample < size
    begin, end, wrong = bag_range(offsets, sample, mask, length)
    feature = tl.zeros_like(sample) + place
    note_outside(flag, wrong, feature, sample, begin, tl.zeros_like(sample) + length, 4)
    base, rows = tl.load(marks + place * 2), tl.load(marks + place * 2 + 1)
    found = tl.zeros([BLOCK], tl.int32)
    for ahead in range(0, tl.max(end - begin, 0)):
        alive = mask & (begin + ahead < end)
        row = tl.load(values + begin + ahead, mask=alive, other=0).to(tl.int64)
        bad = alive & ((row < 0) | (row >= rows))
        note_outside(flag, bad, feature, begin + ahead, row, tl.zeros_like(row) + rows, 3)
        mark = tl.load((base + tl.where(bad, 0, row)).to(tl.pointer_type(tl.uint8)), mask=alive & (bad == 0), other=0)
        found += (mark != 0).to(tl.int32)
    tl.store(out + sample, tl.load(out + sample, mask=mask, other=0) + found, mask=mask)
